//! Services that a plugin asks of its node: a real plugin in its real sandbox, which has no network, and a node that connects
//! for it where a policy of the test's own lets it. Servers are the test's, and not always friendly.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Mutex, OnceLock};
use std::time::Duration;
use thenodes::host::{Host, HostError, NodeInfo, Notice, Request, Response};
use thenodes::net::Net;
use thenodes::network::message::{Message, MessageType};
use thenodes::realms::RealmInfo;
use thenodes_ipc::{limits, pack, Code, PluginName};
use thenodes_node::config::{Permission, Raw, Required};
use thenodes_node::events::{Bus, Emitter};
use thenodes_node::host::api::{Forwarder, NodeHost};
use thenodes_node::network::{Local, Network};
use thenodes_node::plugins::grants::{Grants, Witness};
use thenodes_node::plugins::handle::Handle;
use thenodes_node::plugins::image::{libraries_of_program, Image};
use thenodes_node::plugins::lifecycle::State;
use thenodes_node::plugins::supervisor::{supervise, Change, Keeping, Observer, Policy, Surroundings};
use thenodes_node::plugins::terms::Terms;
use thenodes_node::plugins::watchdog::Watchdog;
use thenodes_node::services::{env::EnvPolicy, net::NetPolicy, Scopes};
use thenodes_tests::{bin_dir, plugin, Spec, PATIENCE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// Lets a plugin reach this machine by its name, and nothing else; and read one variable.
struct Here;

impl NetPolicy for Here {
    fn allows_name(&self, host: &str, _port: u16) -> bool {
        matches!(host, "localhost" | "127.0.0.1")
    }

    fn allows_addr(&self, addr: SocketAddr) -> bool {
        addr.ip().is_loopback()
    }
}

impl EnvPolicy for Here {
    fn allows(&self, name: &str) -> bool {
        name == "PATH"
    }
}

/// Counts refusals, and hears about changes without minding.
#[derive(Default)]
struct Watcher(AtomicUsize, Mutex<Vec<String>>);

impl Witness for Watcher {
    fn denied(&self, plugin: &PluginName, permission: Permission, what: &str, _remedy: &str) {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.lock().expect("no panic").push(format!("{plugin} {permission} {what}"));
    }
}

impl Observer for Watcher {
    fn changed(&self, _: Change) {}
}

/// The node's side of one plugin, with a policy and without peers.
fn host(scopes: Scopes, watcher: &Arc<Watcher>) -> NodeHost {
    let events = Emitter::new(&Bus::start(Vec::new()), "test");
    let local = Local {
        node_id: "node".into(),
        realm: RealmInfo::new("Test", "1"),
        node_type: "daemon".into(),
        capabilities: Vec::new(),
        nonce: String::new(),
        port: 0,
        allowed_node_types: None,
    };
    let net = Raw::default().validate().expect("an empty configuration is valid").networking;
    let network = Arc::new(Network::new(local, net, None, events.clone(), String::new()));
    let later: Arc<OnceLock<Arc<Network>>> = Arc::default();
    let _ = later.set(network);
    let name = PluginName::new("fetch").expect("a name");
    let grants = Grants::new(name, []);
    NodeHost::new(grants, later, events, Arc::<Forwarder>::default(), scopes, watcher.clone(), 10)
}

fn here() -> Scopes {
    Scopes { net: Arc::new(Here), env: Arc::new(Here) }
}

/// Starts the example plugin in its sandbox.
async fn fetch(scopes: Scopes, watcher: &Arc<Watcher>) -> Handle {
    let plugins = Raw::default().validate().expect("an empty configuration is valid").plugins;
    let policy = Arc::new(Policy {
        runner: bin_dir().join("thenodes-runner"),
        limits: plugins.limits,
        watchdog: Watchdog::start(plugins.budget.sample),
        required: Required::Full,
        uid_base: plugins.uid_base,
        transport: Default::default(),
        spare: None,
    });
    let name = PluginName::new("fetch").expect("a name");
    let terms = Terms::agree(name, None, &plugins.giving, plugins.limits, plugins.budget);
    let provided = libraries_of_program(&policy.runner).expect("a runner");
    let image = Image::read(&plugin("fetch"), &provided).expect("a plugin");
    let info = NodeInfo {
        plugin: String::new(),
        node_id: "node".into(),
        realm: RealmInfo::new("Test", "1"),
        node_type: "daemon".into(),
        session_id: String::new(),
    };
    let node = host(scopes, watcher);
    let around = Surroundings {
        policy,
        terms: Arc::new(terms),
        host: Arc::new(move || Arc::new(node.for_process())),
        observer: watcher.clone(),
        info: watch::channel(Some(Arc::new(info))).1,
        slot: 0,
        keeping: Keeping::default(),
    };
    let plugin = supervise(Arc::new(image), around);
    ready(&plugin, 1).await;
    plugin
}

async fn ready(plugin: &Handle, generation: u32) {
    let is = plugin.wait(|s| s.state == State::Ready && s.generation.0 >= generation);
    tokio::time::timeout(PATIENCE, is).await.expect("in time").expect("the plugin is Ready");
}

/// What the plugin answers at its prompt.
async fn prompt(plugin: &Handle, line: &str) -> String {
    let body = pack::encode(&BTreeMap::from([("prefix", "fetch"), ("input", line)])).expect("encodes");
    let answer = plugin.call("prompt", body, limits::REQUEST_DEADLINE).await;
    let answer = answer.unwrap_or_else(|error| panic!("{line}: {error}"));
    pack::decode::<Option<String>>(&answer).expect("a text").expect("its prompt")
}

/// A server that does something with each connection, in a thread of its own.
fn server(each: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let each = Arc::new(each);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let each = each.clone();
            std::thread::spawn(move || each(stream));
        }
    });
    port
}

/// Answers each line with itself.
fn line_server() -> u16 {
    server(|stream| {
        let mut out = stream.try_clone().expect("a socket");
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if writeln!(out, "you said {line}").is_err() {
                return;
            }
        }
    })
}

/// Accepts, says nothing, and tells when a connection has ended.
fn mute_server() -> (u16, mpsc::Receiver<()>) {
    let (tell, ended) = mpsc::channel();
    let port = server(move |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = tell.send(());
    });
    (port, ended)
}

#[test]
fn a_plugin_without_a_grant_reaches_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.set_nonblocking(true).expect("set");
    let port = listener.local_addr().expect("bound").port();
    let mut node = Spec::new("services").with("fetch").start();
    let answer = node.prompt("fetch", &format!("localhost:{port} hello")).expect("the plugin lives");
    assert!(
        answer.contains("PERMISSION_DENIED") && answer.contains(&format!("net.connect localhost:{port}")),
        "{answer}"
    );
    let event = node.expect("action=permission_denied");
    assert!(event.contains("name=fetch") && event.contains(&format!("localhost:{port}")), "{event}");
    assert!(listener.accept().is_err(), "nobody has connected");
    let answer = node.prompt("fetch", "env PATH").expect("the plugin lives");
    assert!(answer.contains("PERMISSION_DENIED") && answer.contains("env.read PATH"), "{answer}");
    assert_eq!(node.status("fetch")["counters"]["denied"], 2);
    // What opens nothing is there for every plugin.
    assert_eq!(node.prompt("fetch", "node").as_deref(), Ok("services"));
    let bytes = node.prompt("fetch", "random 4").expect("the plugin lives");
    assert_eq!(bytes.matches(',').count(), 3, "{bytes}");
}

#[test]
fn an_operator_can_take_random_bytes_and_node_info_away() {
    let more = "[plugins.defaults]\npermissions = [\"command.register\"]";
    let node = Spec::new("taken").with("fetch").more(more).start();
    for (line, permission) in [("random 4", "random"), ("node", "node.info")] {
        let answer = node.prompt("fetch", line).expect("the plugin lives");
        assert!(answer.contains("PERMISSION_DENIED") && answer.contains(permission), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxed_plugin_fetches_a_line_through_the_node() {
    let watcher = Arc::<Watcher>::default();
    let plugin = fetch(here(), &watcher).await;
    let port = line_server();
    for host in ["localhost", "127.0.0.1"] {
        assert_eq!(prompt(&plugin, &format!("{host}:{port} hello")).await, "you said hello");
    }
    assert_eq!(prompt(&plugin, "env PATH").await, std::env::var("PATH").unwrap_or("(not set)".into()));
    assert_eq!(prompt(&plugin, "node").await, "node");
    assert_eq!(watcher.0.load(Ordering::SeqCst), 0);
    // Next door is closed.
    let answer = prompt(&plugin, &format!("[::1]:{port} hello")).await;
    assert!(answer.contains("PERMISSION_DENIED") && answer.contains(&format!("[::1]:{port}")), "{answer}");
    let denied = watcher.1.lock().expect("no panic").clone();
    assert_eq!(denied, [format!("fetch net.connect net.connect [::1]:{port}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_is_not_async_may_wait_for_the_network() {
    let plugin = fetch(here(), &Arc::default()).await;
    let port = line_server();
    for n in 0..20 {
        let text = MessageType::Text(format!("fetch localhost:{port} number {n}"));
        let message = Message::new("peer", "node", text, None, None);
        plugin.deliver(pack::encode(&message).expect("encodes").into());
    }
    let all = async {
        let wanted = format!("localhost:{port} says you said number 19");
        while !plugin.logs.last(256).0.iter().any(|line| line.text == wanted) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("no deadlock");
    assert_eq!(plugin.status().starts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_dies_leaves_no_connection_behind_and_the_next_one_has_all_its_own() {
    let plugin = fetch(here(), &Arc::default()).await;
    let (port, ended) = mute_server();
    for generation in 1..=2 {
        let answer = prompt(&plugin, &format!("hold localhost:{port} 1000")).await;
        assert!(answer.starts_with("10 held; RESOURCE_EXHAUSTED"), "{answer}");
        let pid = plugin.status().pid.expect("it lives");
        let killed =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
        assert_eq!(killed, Ok(()));
        for _ in 0..10 {
            ended.recv_timeout(PATIENCE).expect("the server sees the end of every connection");
        }
        ready(&plugin, generation + 1).await;
    }
    // A plugin that lives and lets go does the same.
    prompt(&plugin, &format!("hold localhost:{port} 3")).await;
    assert_eq!(prompt(&plugin, "drop").await, "dropped");
    for _ in 0..3 {
        ended.recv_timeout(PATIENCE).expect("dropping a stream closes it");
    }
    assert!(ended.try_recv().is_err(), "three and no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_floods_that_nobody_reads_cost_the_node_next_to_nothing() {
    let plugin = fetch(here(), &Arc::default()).await;
    let (tell, stuck) = mpsc::channel();
    let port = server(move |mut stream| {
        stream.set_write_timeout(Some(Duration::from_millis(500))).expect("set");
        let (mut written, chunk) = (0usize, [1; 64 * 1024]);
        while let Ok(count) = stream.write(&chunk) {
            written += count;
            assert!(written < 1 << 30, "a gigabyte is no back-pressure");
        }
        let _ = tell.send(written);
        let _ = stream.read(&mut [0]); // until the plugin lets go
    });
    let before = resident();
    assert!(prompt(&plugin, &format!("hold localhost:{port} 10")).await.starts_with("10 held"));
    for _ in 0..10 {
        let written = stuck.recv_timeout(PATIENCE).expect("the flood stops");
        assert!(written < 8 * 1024 * 1024, "{written} bytes: more than both kernels' ends hold");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 16 * 1024 * 1024, "the node grew by {grown} bytes");
    // And everything else goes on.
    assert_eq!(prompt(&plugin, "random 1").await.len(), "[00]".len());
}

/// Resident memory of this process, which is the node here.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or("VmRSS: 0 kB");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The node in the same process, as far away as over a link: no answer comes at once.
struct Distant(NodeHost);

#[async_trait::async_trait]
impl Host for Distant {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        tokio::task::yield_now().await;
        self.0.call(request).await
    }

    fn notify(&self, notice: Notice) {
        self.0.notify(notice);
    }
}

/// An embedder's view of the same streams.
fn net() -> Net {
    Net::new(Arc::new(Distant(host(here(), &Arc::default()))))
}

#[tokio::test]
async fn both_halves_of_a_stream_work_at_once_and_every_byte_arrives_in_order() {
    let port = server(|stream| {
        let (mut from, mut to) = (stream.try_clone().expect("a socket"), stream);
        let _ = std::io::copy(&mut from, &mut to);
    });
    let stream = net().connect("localhost", port).await.expect("connects");
    let (mut read, mut write) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&copy).await.expect("writes");
        write.shutdown().await.expect("ends");
        write
    });
    let mut got = Vec::new();
    let reading = read.read_to_end(&mut got);
    tokio::time::timeout(PATIENCE, reading).await.expect("no lost wake-up").expect("reads");
    assert_eq!(got.len(), sent.len());
    assert!(got == sent, "in order");
    writer.await.expect("no panic");
}

#[tokio::test]
async fn a_read_that_is_given_up_loses_no_byte_and_a_write_is_sent_once() {
    let (tell, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    let port = server(move |mut stream| {
        let mut words = Vec::new();
        stream.read_to_end(&mut words).expect("reads");
        go.lock().expect("no panic").recv().expect("told");
        stream.write_all(&words).expect("writes");
        stream.write_all(b" and more").expect("writes");
    });
    let mut stream = net().connect("localhost", port).await.expect("connects");
    {
        // Given up and begun again with the same bytes: the same write.
        let mut write = Box::pin(stream.write_all(b"bytes"));
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx).is_pending())).await
        );
    }
    stream.write_all(b"bytes").await.expect("writes");
    {
        // Given up for other bytes: those come after.
        let mut write = Box::pin(stream.write_all(b" then"));
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx).is_pending())).await
        );
    }
    stream.write_all(b" others").await.expect("writes");
    stream.shutdown().await.expect("ends");
    let mut buffer = [0; 64];
    for _ in 0..3 {
        let read = tokio::time::timeout(Duration::from_millis(5), stream.read(&mut buffer)).await;
        assert!(read.is_err(), "nothing was sent yet");
    }
    tell.send(()).expect("the server waits");
    let mut got = Vec::new();
    AsyncReadExt::read_to_end(&mut stream, &mut got).await.expect("reads");
    assert_eq!(String::from_utf8_lossy(&got), "bytes then others and more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_serves_std_traits_on_a_plain_thread() {
    let port = line_server();
    let stream = net().connect("localhost", port).await.expect("connects");
    // The embedder's node needs its runtime; a plugin's link does not.
    let runtime = tokio::runtime::Handle::current();
    let plain = std::thread::spawn(move || {
        let _inside = runtime.enter();
        let mut stream = stream.into_blocking();
        stream.write_all(b"one\ntwo\n").expect("writes");
        stream.shutdown().expect("ends");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("reads");
        text
    });
    assert_eq!(plain.join().expect("no panic"), "you said one\nyou said two\n");
}

#[tokio::test]
async fn a_stream_of_one_process_is_unknown_to_the_next() {
    let (port, _ended) = mute_server();
    let old = host(here(), &Arc::default());
    let connect = Request::NetConnect { host: "localhost".into(), port };
    let Ok(Response::Stream(stream)) = old.call(connect).await else { panic!("it connects") };
    let next = old.for_process();
    let code = |answer: Result<Response, HostError>| answer.map_err(|error| error.code);
    assert_eq!(code(next.call(Request::NetRead { stream, max: 1 }).await), Err(Code::NotFound));
    assert_eq!(code(next.call(Request::NetClose { stream }).await), Err(Code::NotFound));
    assert_eq!(code(old.call(Request::NetClose { stream }).await), Ok(Response::Done(1)));
}
