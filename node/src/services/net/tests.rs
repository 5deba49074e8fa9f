//! What streams promise, with real sockets. Servers here are as unfriendly as the promise needs them to be; limits are short
//! only where a test waits for one to bite.

use super::*;
use crate::services::DenyAll;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown};
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Allows these hosts and these addresses, at every port.
struct Fixed(&'static [&'static str], &'static [&'static str]);

impl NetPolicy for Fixed {
    fn allows_name(&self, host: &str, _port: u16) -> bool {
        self.0.contains(&host)
    }

    fn allows_addr(&self, addr: SocketAddr) -> bool {
        self.1.contains(&addr.ip().to_string().as_str())
    }
}

const LOOPBACK: Fixed = Fixed(&["127.0.0.1", "localhost", "name.example"], &["127.0.0.1"]);

fn no_resolver() -> Resolver {
    Arc::new(|host: &str, _| panic!("{host} is looked up"))
}

fn streams_with(policy: Fixed, limits: Limits, resolver: Resolver) -> Streams {
    Streams::new(Arc::new(Dialer::with(Arc::new(policy), limits, resolver)))
}

fn streams(limits: Limits) -> Streams {
    streams_with(LOOPBACK, limits, no_resolver())
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

fn id(answer: Result<Response, HostError>) -> u64 {
    match answer {
        Ok(Response::Stream(id)) => id,
        other => panic!("{other:?}"),
    }
}

fn bytes(answer: Result<Response, HostError>) -> Vec<u8> {
    match answer {
        Ok(Response::Bytes(Bytes(bytes))) => bytes,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(answer: Result<Response, HostError>, code: Code, words: &[&str]) {
    let error = answer.expect_err("it should be refused");
    assert_eq!(error.code, code, "{error}");
    for word in words {
        assert!(error.message.contains(word), "{word:?} is not in: {error}");
    }
}

#[tokio::test]
async fn bytes_go_both_ways_until_each_side_has_ended() {
    let (listener, port) = listener().await;
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("accepts");
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.expect("reads until the plugin's end");
        socket.write_all(&all).await.expect("writes after it");
        all.len()
    });
    let streams = streams(Limits::default());
    let stream = id(streams.connect("127.0.0.1", port).await);
    let sent: Vec<u8> = (0..limits::MAX_STREAM_CHUNK).map(|n| (n % 251) as u8).collect();
    assert_eq!(streams.write(stream, &sent).await, Ok(Response::Done(sent.len() as u64)));
    assert_eq!(streams.write(stream, &[]).await, Ok(Response::Done(0)));
    assert_eq!(streams.shut_down(stream), Ok(Response::Done(1)));
    let mut got = Vec::new();
    loop {
        match bytes(streams.read(stream, 1000).await) {
            piece if piece.is_empty() => break,
            piece => {
                assert!(piece.len() <= 1000, "never more than was asked for");
                got.extend(piece);
            }
        }
    }
    assert_eq!(got, sent);
    assert_eq!(server.await.expect("no panic"), sent.len());
    assert_eq!(streams.close(stream), Ok(Response::Done(1)));
    refused(streams.read(stream, 1).await, Code::NotFound, &["stream 1"]);
    refused(streams.close(stream), Code::NotFound, &[]);
}

#[tokio::test]
async fn a_name_that_is_not_allowed_is_not_even_looked_up() {
    let nobody = Streams::new(Arc::new(Dialer::with(Arc::new(DenyAll), Limits::default(), no_resolver())));
    for host in ["secret.attacker.example", "127.0.0.1", "::1", "8.8.8.8"] {
        refused(nobody.connect(host, 80).await, Code::PermissionDenied, &[host, ":80", "net.connect"]);
    }
    let some = streams(Limits::default());
    refused(some.connect("other.example", 80).await, Code::PermissionDenied, &["other.example:80"]);
}

#[tokio::test]
async fn an_allowed_name_that_leads_to_a_forbidden_address_is_not_dialed() {
    let (listener, port) = listener().await;
    // The real resolver, and a policy that lets the name pass but not where it leads.
    let policy = Arc::new(Fixed(&["localhost"], &["93.184.216.34"]));
    let denied = Streams::new(Arc::new(Dialer::new(policy, 10)));
    let words = ["localhost:", "local or reserved", "net.connect"];
    refused(denied.connect("localhost", port).await, Code::PermissionDenied, &words);
    // The control: with the address the same attempt arrives, and it is the first that arrives.
    let allowed = Streams::new(Arc::new(Dialer::new(Arc::new(LOOPBACK), 10)));
    let stream = id(allowed.connect("LOCALHOST.", port).await);
    let (mut socket, _) = listener.accept().await.expect("accepts");
    socket.write_all(b"first").await.expect("writes");
    assert_eq!(bytes(allowed.read(stream, 100).await), b"first");
}

#[tokio::test]
async fn what_is_dialed_is_what_was_checked_and_there_is_one_lookup() {
    // The same port on two addresses; the resolver answers like an attacker's: harmless first, then the target.
    let harmless = TcpListener::bind("127.0.0.2:0").await.expect("binds");
    let port = harmless.local_addr().expect("bound").port();
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("binds");
    let lookups = Arc::new(AtomicUsize::new(0));
    let counted = lookups.clone();
    let rebinding: Resolver = Arc::new(move |_: &str, port| {
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        let forbidden = SocketAddr::from(([127, 0, 0, 1], port));
        let allowed = SocketAddr::from(([127, 0, 0, 2], port));
        Ok(if first { vec![forbidden, allowed, forbidden] } else { vec![forbidden] })
    });
    let streams = streams_with(Fixed(&["name.example"], &["127.0.0.2"]), Limits::default(), rebinding);
    let stream = id(streams.connect("name.example", port).await);
    assert_eq!(lookups.load(Ordering::SeqCst), 1);
    let (mut socket, _) = harmless.accept().await.expect("accepts");
    socket.write_all(b"harmless").await.expect("writes");
    assert_eq!(bytes(streams.read(stream, 100).await), b"harmless");
    refused(streams.connect("name.example", port).await, Code::PermissionDenied, &["127.0.0.1"]);
    // Nobody has come to the forbidden address: the first there is ourselves.
    let own = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connects");
    let (_, who) = target.accept().await.expect("accepts");
    assert_eq!(Some(who), own.local_addr().ok());
}

#[tokio::test]
async fn ipv4_in_ipv6_is_checked_and_dialed_as_ipv4() {
    let (listener, port) = listener().await;
    let mapped: Resolver = Arc::new(|_: &str, port| {
        Ok(vec![SocketAddr::new("::ffff:127.0.0.1".parse().expect("an address"), port)])
    });
    let strict =
        streams_with(Fixed(&["name.example"], &["::ffff:127.0.0.1"]), Limits::default(), mapped.clone());
    refused(strict.connect("name.example", port).await, Code::PermissionDenied, &[" 127.0.0.1"]);
    let streams = streams_with(LOOPBACK, Limits::default(), mapped);
    for host in ["name.example", "::ffff:127.0.0.1", "[::ffff:7f00:1]"] {
        id(streams.connect(host, port).await);
        assert!(listener.accept().await.expect("accepts").1.is_ipv4());
    }
}

#[tokio::test]
async fn only_so_many_addresses_of_a_name_are_looked_at() {
    let many: Resolver = Arc::new(|_: &str, port| {
        let mut addrs = vec![SocketAddr::from(([10, 0, 0, 1], port)); 16];
        addrs.push(SocketAddr::from(([127, 0, 0, 1], port)));
        Ok(addrs)
    });
    let (_listener, port) = listener().await;
    let streams = streams_with(LOOPBACK, Limits::default(), many);
    refused(streams.connect("name.example", port).await, Code::PermissionDenied, &["10.0.0.1"]);
}

#[tokio::test]
async fn a_resolver_that_hangs_holds_its_few_places_and_nobody_waits_for_it() {
    let (release, gate) = mpsc::channel::<()>();
    let (gate, calls) = (Mutex::new(gate), Arc::new(AtomicUsize::new(0)));
    let counted = calls.clone();
    let stuck: Resolver = Arc::new(move |_: &str, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let _ = gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
        Ok(Vec::new())
    });
    let short = Limits { resolve: Duration::from_millis(100), ..Limits::default() };
    let streams = streams_with(LOOPBACK, short, stuck);
    for _ in 0..5 {
        refused(streams.connect("name.example", 80).await, Code::Timeout, &["name.example:80", "100ms"]);
    }
    assert_eq!(calls.load(Ordering::SeqCst), short.lookups, "a lookup that hangs keeps its place");
    drop(release);
    let patient = Arc::clone(&streams.dialer.lookups);
    let all = patient.acquire_many(short.lookups as u32).await.expect("open");
    drop(all);
    refused(streams.connect("name.example", 80).await, Code::NetworkError, &["no address"]);
}

#[tokio::test]
async fn who_cannot_be_reached_is_named_with_the_reason() {
    let (listener, port) = listener().await;
    drop(listener);
    let streams = streams(Limits::default());
    let words = [format!("127.0.0.1:{port}"), "refused".into()];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    refused(streams.connect("127.0.0.1", port).await, Code::NetworkError, &words);
    let failing: Resolver = Arc::new(|_: &str, _| Err(io::Error::other("no such name")));
    let streams = streams_with(LOOPBACK, Limits::default(), failing);
    refused(
        streams.connect("name.example", 1).await,
        Code::NetworkError,
        &["name.example:1", "no such name"],
    );
}

#[tokio::test]
async fn a_server_that_does_not_answer_the_first_packet_costs_the_deadline_and_no_more() {
    // A full backlog: the kernel drops what comes beyond it.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("binds");
    let listener = socket.listen(1).expect("listens");
    let addr = listener.local_addr().expect("bound");
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
        waiting.push(stream);
        assert!(waiting.len() < 1000, "the backlog ends somewhere");
    }
    let short = Limits { connect: Duration::from_millis(200), ..Limits::default() };
    let streams = streams(short);
    let begun = Instant::now();
    refused(streams.connect("127.0.0.1", addr.port()).await, Code::Timeout, &["0.2 s", &addr.to_string()]);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(streams.slots.available_permits(), short.connections, "a failed attempt gives its place back");
}

#[tokio::test]
async fn a_mute_server_ends_the_wait_and_not_the_stream() {
    let (listener, port) = listener().await;
    let streams = streams(Limits { wait: Duration::from_millis(50), ..Limits::default() });
    let stream = id(streams.connect("127.0.0.1", port).await);
    let (mut socket, _) = listener.accept().await.expect("accepts");
    refused(streams.read(stream, 10).await, Code::Timeout, &["127.0.0.1", "50ms"]);
    socket.write_all(b"late").await.expect("writes");
    assert_eq!(bytes(streams.read(stream, 10).await), b"late");
}

#[tokio::test]
async fn a_server_that_never_reads_stops_the_writer_with_the_number_of_bytes_taken() {
    let (listener, port) = listener().await;
    let streams = streams(Limits { wait: Duration::from_millis(50), ..Limits::default() });
    let stream = id(streams.connect("127.0.0.1", port).await);
    let (socket, _) = listener.accept().await.expect("accepts");
    let chunk = vec![7; limits::MAX_STREAM_CHUNK];
    let mut taken = 0;
    let error = loop {
        match streams.write(stream, &chunk).await {
            Ok(Response::Done(count)) => taken += count,
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
        assert!(taken < 64 * 1024 * 1024, "the kernel takes no end of bytes");
    };
    assert_eq!(error.code, Code::Timeout, "{error}");
    // Every byte that was said to be taken arrives.
    streams.close(stream).expect("open");
    let mut socket = socket.into_std().expect("a socket");
    socket.set_nonblocking(false).expect("blocks");
    let mut arrived = Vec::new();
    socket.read_to_end(&mut arrived).expect("reads");
    assert_eq!(arrived.len() as u64, taken);
}

#[tokio::test]
async fn a_flood_that_nobody_reads_stops_at_the_kernels_buffers() {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("binds");
    socket.set_send_buffer_size(64 * 1024).expect("inherited by what is accepted");
    let listener = socket.listen(8).expect("listens");
    let port = listener.local_addr().expect("bound").port();
    let streams = streams(Limits::default());
    let stream = id(streams.connect("127.0.0.1", port).await);
    let mut socket = listener.accept().await.expect("accepts").0.into_std().expect("a socket");
    socket.set_nonblocking(false).expect("blocks");
    socket.set_write_timeout(Some(Duration::from_millis(300))).expect("set");
    let flood = tokio::task::spawn_blocking(move || {
        let (mut written, chunk) = (0, [1; 16 * 1024]);
        while let Ok(count) = socket.write(&chunk) {
            written += count;
        }
        (written, socket)
    });
    let (written, socket) = flood.await.expect("no panic");
    assert!(written < 2 * 1024 * 1024, "{written} bytes went into a stream that nobody reads");
    // The control: who reads gets all of it.
    socket.shutdown(Shutdown::Write).expect("open");
    let mut read = 0;
    loop {
        match bytes(streams.read(stream, u32::MAX).await).len() {
            0 => break,
            count => {
                assert!(count <= limits::MAX_STREAM_CHUNK);
                read += count;
            }
        }
    }
    assert_eq!(read, written);
}

#[tokio::test]
async fn a_thousand_connections_are_ten() {
    let (listener, port) = listener().await;
    let streams = streams(Limits::default());
    let mut open = Vec::new();
    for n in 0..1000 {
        match streams.connect("127.0.0.1", port).await {
            Ok(Response::Stream(id)) => open.push((id, listener.accept().await.expect("accepts").0)),
            answer => {
                assert!(n >= 10);
                refused(answer, Code::ResourceExhausted, &["10 connections"]);
            }
        }
    }
    assert_eq!(open.len(), 10);
    let (first, mut socket) = open.remove(0);
    streams.close(first).expect("open");
    assert_eq!(socket.read(&mut [0]).await.expect("an end"), 0, "closing reaches the server");
    let again = id(streams.connect("127.0.0.1", port).await);
    assert!(again > first, "a number is never used twice");
}

#[tokio::test]
async fn each_plugin_has_as_many_connections_as_its_own_limit_says() {
    let (_listener, port) = listener().await;
    for most in [0, 2] {
        let streams = Streams::new(Arc::new(Dialer::new(Arc::new(LOOPBACK), most)));
        for _ in 0..most {
            id(streams.connect("127.0.0.1", port).await);
        }
        let answer = streams.connect("127.0.0.1", port).await;
        refused(answer, Code::ResourceExhausted, &["limits.connections", &most.to_string()]);
    }
}

#[tokio::test]
async fn dropping_the_streams_of_a_process_closes_its_sockets_and_no_others() {
    let (listener, port) = listener().await;
    let dialer = Arc::new(Dialer::with(Arc::new(LOOPBACK), Limits::default(), no_resolver()));
    let (dying, living) = (Streams::new(dialer.clone()), Streams::new(dialer));
    let old = id(dying.connect("127.0.0.1", port).await);
    let (mut of_dying, _) = listener.accept().await.expect("accepts");
    drop(dying);
    assert_eq!(of_dying.read(&mut [0]).await.expect("an end"), 0);
    // The next process of the same plugin knows nothing of it, and has all its places.
    refused(living.read(old, 1).await, Code::NotFound, &[]);
    for _ in 0..10 {
        id(living.connect("127.0.0.1", port).await);
    }
}

#[tokio::test]
async fn closing_wakes_whoever_waits_on_the_stream() {
    let (listener, port) = listener().await;
    let streams = Arc::new(streams(Limits::default()));
    let stream = id(streams.connect("127.0.0.1", port).await);
    let (mut socket, _) = listener.accept().await.expect("accepts");
    let waits = streams.clone();
    let mut waiting = Box::pin(async move { waits.read(stream, 1).await });
    assert!(is_pending(&mut waiting).await);
    streams.close(stream).expect("open");
    refused(waiting.await, Code::NotFound, &["closed meanwhile"]);
    assert_eq!(socket.read(&mut [0]).await.expect("an end"), 0);
}

/// Polls once: true if the future waits.
async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending()))
        .await
}

#[tokio::test]
async fn a_stream_on_which_nothing_moves_is_closed() {
    let (listener, port) = listener().await;
    let streams = streams(Limits { idle: Duration::from_millis(400), ..Limits::default() });
    let quiet = id(streams.connect("127.0.0.1", port).await);
    let (mut of_quiet, _) = listener.accept().await.expect("accepts");
    let busy = id(streams.connect("127.0.0.1", port).await);
    let (mut of_busy, _) = listener.accept().await.expect("accepts");
    let traffic = async {
        loop {
            of_busy.write_all(b"x").await.expect("writes");
            assert_eq!(bytes(streams.read(busy, 1).await), b"x");
            tokio::task::yield_now().await;
        }
    };
    let mut end = [0];
    tokio::select! {
        () = traffic => {}
        end = of_quiet.read(&mut end) => assert_eq!(end.expect("an end"), 0),
    }
    refused(streams.read(quiet, 1).await, Code::NotFound, &["stream 1"]);
    assert_eq!(streams.write(busy, b"y").await, Ok(Response::Done(1)), "the other one had traffic");
}

#[tokio::test]
async fn arguments_out_of_bounds_are_refused_as_such() {
    let (listener, port) = listener().await;
    let streams = streams(Limits::default());
    for (host, port) in [("", 80), ("127.0.0.1", 0), ("127.1", 80), ("a b", 80), (&*"x".repeat(254), 80)] {
        refused(streams.connect(host, port).await, Code::InvalidInput, &["net.connect"]);
    }
    let stream = id(streams.connect("127.0.0.1", port).await);
    let (_socket, _) = listener.accept().await.expect("accepts");
    refused(streams.read(stream, 0).await, Code::InvalidInput, &["max"]);
    let long = vec![0; limits::MAX_STREAM_CHUNK + 1];
    refused(streams.write(stream, &long).await, Code::InvalidInput, &["65537", "65536"]);
    for unknown in [0, 2, u64::MAX] {
        refused(streams.read(unknown, 1).await, Code::NotFound, &[]);
        refused(streams.write(unknown, &[1]).await, Code::NotFound, &[]);
        refused(streams.shut_down(unknown), Code::NotFound, &[]);
    }
}
