//! Which door a grant opens, how far, and what a refusal says.

use super::*;
use crate::config::{Config, Raw};
use crate::plugins::manifest::Manifest;
use crate::plugins::terms::Terms;
use std::sync::Mutex;
use thenodes::host::Text;

fn name() -> PluginName {
    PluginName::new("echo").expect("a name")
}

fn config(text: &str) -> Config {
    Raw::parse(Path::new("c.toml"), text).and_then(Raw::validate).expect("valid")
}

/// The grants of a manifest with these permissions under this configuration.
fn grants(permissions: &str, operator: &str) -> Grants {
    let text = format!("schema = 1\nname = \"echo\"\nversion = \"1.0.0\"\n{permissions}");
    let manifest = Manifest::parse(Path::new("plugins/echo/plugin.toml"), &text).expect("valid");
    let plugins = config(operator).plugins;
    Terms::agree(name(), Some(manifest), &plugins.giving, plugins.limits, plugins.budget).grants
}

const SEND_TO_B: &str = "[[permission]]\nname = \"message.send\"\nscope = [\"node-b\"]";

#[test]
fn without_a_grant_nothing_passes_and_each_grant_opens_only_its_own_door() {
    let send = Request::Broadcast { text: "{}".into() };
    assert_eq!(Grants::new(name(), []).judge(&send), Verdict::Denied(Permission::MessageSend));
    assert_eq!(Grants::new(name(), [Permission::MessageSend]).judge(&send), Verdict::Granted);
    let reader = Grants::new(name(), [Permission::PeersRead]);
    assert_eq!(reader.judge(&send), Verdict::Denied(Permission::MessageSend));
    assert_eq!(reader.judge(&Request::ListPeers {}), Verdict::Granted);
    assert_eq!(reader.judge_notice(&Notice::SubscribeEvents), Verdict::Denied(Permission::EventsSubscribe));
    let insert = Request::StoreFailure { addr: Text(SocketAddr::from(([127, 0, 0, 1], 1))) };
    assert_eq!(reader.judge(&insert), Verdict::Denied(Permission::PeersWrite));
    assert_eq!(Grants::new(name(), [Permission::PeersWrite]).judge(&insert), Verdict::Granted);
    for given in Permission::ALL {
        let grants = Grants::new(name(), [given]);
        let open: Vec<_> =
            Permission::ALL.into_iter().filter(|door| grants.allows(*door, Subject::Whole)).collect();
        assert_eq!(open, [given]);
    }
}

#[test]
fn a_scope_reaches_its_subject_and_nothing_else() {
    let grants = grants(SEND_TO_B, "");
    assert!(grants.allows(Permission::MessageSend, Subject::Peer("node-b")));
    assert!(!grants.allows(Permission::MessageSend, Subject::Peer("node-c")));
    assert!(!grants.allows(Permission::MessageSend, Subject::Whole), "all is more than one");
    assert!(!grants.allows(Permission::MessageReceive, Subject::Peer("node-b")));
}

#[test]
fn reading_never_means_writing() {
    let grants = grants(
        "[[permission]]\nname = \"fs.read\"\nscope = [\"/srv/data\"]",
        "[plugins.for.echo]\nallow = [\"fs.read:/srv\", \"fs.write:/srv\", \"fs.create:/srv\"]\n",
    );
    let path = Subject::Path(Path::new("/srv/data/x"));
    assert!(grants.allows(Permission::FsRead, path));
    assert!(!grants.allows(Permission::FsWrite, path) && !grants.allows(Permission::FsCreate, path));
    assert!(
        !grants.allows(Permission::FsRead, Subject::Path(Path::new("/srv/other"))),
        "the operator's is wider"
    );
}

#[test]
fn deny_takes_a_part_away_and_a_denied_name_does_not_take_the_internet() {
    let manifest = "[[permission]]\nname = \"net.connect\"\nscope = [\"*.example.com:443\"]\n[[permission]]\nname = \"message.send\"";
    let grants = grants(
        manifest,
        "[plugins.for.echo]\nallow = [\"net.connect:*.example.com:443\"]\ndeny = [\"net.connect:bad.example.com:443\", \"net.connect:93.0.0.0/8:*\", \"message.send:node-b\"]\n",
    );
    let host = |host| grants.allows(Permission::NetConnect, Subject::Host(host, 443));
    assert!(host("good.example.com") && !host("bad.example.com") && !host("example.com"));
    let addr =
        |text: &str| grants.allows(Permission::NetConnect, Subject::Addr(text.parse().expect("an address")));
    assert!(
        addr("1.1.1.1:443")
            && !addr("93.1.1.1:443")
            && !addr("[::ffff:93.1.1.1]:443")
            && !addr("10.0.0.1:443")
    );
    assert!(grants.allows(Permission::MessageSend, Subject::Peer("node-c")));
    assert!(!grants.allows(Permission::MessageSend, Subject::Peer("node-b")));
    assert!(!grants.allows(Permission::MessageSend, Subject::Whole), "all would be node-b too");
}

#[test]
fn a_refusal_names_the_line_that_would_allow_it() {
    let peer = Subject::Peer("node-c");
    let cases = [
        (grants("", ""), Permission::MessageSend, peer, "add [[permission]] name = \"message.send\" to plugins/echo/plugin.toml (after line 3)"),
        (grants(SEND_TO_B, ""), Permission::MessageSend, peer, "add \"node-c\" to the scope of [[permission]] name = \"message.send\" in plugins/echo/plugin.toml:5"),
        (grants(SEND_TO_B, ""), Permission::MessageSend, Subject::Whole, "ask without a scope in [[permission]] name = \"message.send\" in plugins/echo/plugin.toml:5"),
        (
            grants("[[permission]]\nname = \"message.send\"", "[plugins.policy]\npermissions = []\n"),
            Permission::MessageSend,
            peer,
            "add \"message.send:node-c\" to [plugins.for.echo] allow in the configuration",
        ),
        (
            grants("", ""),
            Permission::EnvRead,
            Subject::Env("HOME"),
            "add [[permission]] name = \"env.read\" scope = [\"HOME\"] to plugins/echo/plugin.toml (after line 3), and add \"env.read:HOME\" to [plugins.for.echo] allow in the configuration",
        ),
        (
            grants("[[permission]]\nname = \"random\"", "[plugins.for.echo]\ndeny = [\"random\"]\n"),
            Permission::Random,
            Subject::Whole,
            "the operator denies it: change \"random\" in [plugins.for.echo] deny",
        ),
        (
            Grants::new(name(), []),
            Permission::PeersRead,
            Subject::Whole,
            "add \"peers.read\" to [plugins.defaults] permissions, or give the plugin a plugin.toml that asks for it",
        ),
    ];
    for (grants, permission, subject, expected) in cases {
        assert!(!grants.allows(permission, subject), "{expected}");
        assert_eq!(grants.remedy(permission, subject), expected);
    }
}

/// A host with two peers that notes what reached it.
#[derive(Default)]
struct Two(Mutex<Vec<String>>);

#[async_trait::async_trait]
impl Host for Two {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        let peer = |node_id: &str, port| PeerInfo {
            node_id: node_id.into(),
            addr: SocketAddr::from(([127, 0, 0, 1], port)),
            capabilities: vec![],
        };
        let peers = [peer("node-b", 1), peer("node-c", 2)];
        match request {
            Request::ListPeers {} => Ok(Response::Peers(peers.into())),
            Request::FindPeer { addr: Some(addr), .. } => {
                Ok(Response::Peer(peers.into_iter().find(|peer| peer.addr == addr.0)))
            }
            other => {
                self.0.lock().expect("no panic").push(format!("{other:?}"));
                Ok(Response::Done(1))
            }
        }
    }

    fn notify(&self, _: Notice) {
        self.0.lock().expect("no panic").push("notice".into());
    }
}

/// A witness that keeps what it heard.
#[derive(Default)]
struct Heard(Mutex<Vec<(Permission, String, String)>>);

impl Witness for Heard {
    fn denied(&self, _: &PluginName, permission: Permission, method: &str, remedy: &str) {
        self.0.lock().expect("no panic").push((permission, method.into(), remedy.into()));
    }
}

#[tokio::test]
async fn a_broadcast_and_an_address_reach_only_peers_in_scope() {
    let (host, heard) = (Arc::new(Two::default()), Arc::new(Heard::default()));
    let granted = Granted::new(grants(SEND_TO_B, ""), host.clone(), heard.clone());
    let text = || "{}".to_owned();
    assert_eq!(granted.call(Request::Broadcast { text: text() }).await, Ok(Response::Done(1)));
    let to =
        |port| Request::SendToAddr { addr: Text(SocketAddr::from(([127, 0, 0, 1], port))), text: text() };
    assert_eq!(granted.call(to(1)).await, Ok(Response::Done(1)));
    for port in [2, 3] {
        let error = granted.call(to(port)).await.expect_err("not in scope");
        assert_eq!(error.code, Code::PermissionDenied, "an absent peer looks like a forbidden one");
    }
    let one = "SendToNode { node_id: \"node-b\", text: \"{}\" }";
    assert_eq!(*host.0.lock().expect("no panic"), [one, one], "an address became the id that was judged");
    assert!(granted.call(Request::ListPeers {}).await.is_err(), "sending is not looking");
    granted.notify(Notice::SubscribeEvents);
    let heard = heard.0.lock().expect("no panic");
    let methods: Vec<_> = heard.iter().map(|(_, method, _)| method.as_str()).collect();
    assert_eq!(methods, ["peers.send_to_addr", "peers.send_to_addr", "peers.list", "events.subscribe"]);
}
