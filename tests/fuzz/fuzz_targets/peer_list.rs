//! Addresses that a peer tells: no panic, no more believed than a list may have, nothing nearer than whoever told it, and a store that
//! stays within its bound whatever it learns.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thenodes::network::message::MessageType;
use thenodes::network::{PeerSource, PeerStore};
use thenodes_node::network::discovery::{believed, reach, Reach, MAX_LIST};
use thenodes_node::network::wire::decode;

const MOST: usize = 8;
const PORT: u16 = 7000;

fuzz_target!(|data: &[u8]| {
    let Some((how, lines)) = data.split_first() else { return };
    let private = how & 1 != 0;
    let by = [
        IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::new(0x2a00, 0, 0, 0, 0, 0, 0, 1)),
    ][usize::from(how >> 1 & 3)];
    let store = PeerStore::with_capacity(MOST);
    for line in lines.split(|byte| *byte == b'\n') {
        let Ok(message) = decode(line) else { continue };
        let MessageType::PeerList { peers } = message.msg_type else { continue };
        let list = believed(&peers, by, private, PORT);
        assert!(list.len() <= MAX_LIST.min(peers.len()));
        for addr in &list {
            assert!(addr.port() != 0 && reach(addr.ip()) != Reach::Nowhere);
            assert!(private || reach(addr.ip()) >= reach(by), "{addr} told by {by}");
            assert!(addr.port() != PORT || reach(addr.ip()) != Reach::Host, "ourselves");
        }
        store.learn(&list, PeerSource::Gossip);
        assert!(store.sample_where(usize::MAX, |_| true).len() <= MOST);
    }
});
