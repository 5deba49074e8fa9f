//! The control: commits one sin without any wall and prints what came of it. Not for use outside tests.

fn main() {
    let sin = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    println!("{}", hostile::sins::commit(&sin));
}
