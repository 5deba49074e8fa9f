//! Whose a node id is. A peer with a certificate may use an id if an authority vouches for it, if the operator's directory pairs it with its
//! key, or if nobody's key came with that id first. Each of the three is asked only where the one before it has no answer. Does not trust
//! what a certificate says of its own name: whoever has a trusted key can write another one.

use super::handshake::Refusal;
use super::rejudge::{in_turn, turn};
use super::rules::Rules;
use super::Network;
use crate::config::{is_node_id, Encryption, TrustMode};
use crate::events::Emitter;
use crate::security::bindings::{Binding, BindingError, Bindings, Meeting, MAX_BINDINGS};
use crate::security::directory::{Pair, Trusted};
use crate::security::owners::{Adopted, Change, Done, Known, NotOwned, Owners};
use crate::security::pki::CertificateFacts;
use crate::text::printable;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use thenodes::events::model::LogLevel;

/// Between two writings: what comes meanwhile is written together.
const PAUSE: Duration = Duration::from_secs(1);

/// True where ids that keys came with are kept on disk by the table.
pub(super) fn keeps(encryption: &Encryption) -> bool {
    matches!(encryption.policy.mode, TrustMode::Allowlist | TrustMode::Observe)
}

/// True where the operator's directory says who is let in, and so whose certificates name ids for him.
pub(super) fn lists(encryption: &Encryption) -> bool {
    match encryption.policy.mode {
        TrustMode::Allowlist | TrustMode::Observe | TrustMode::Tofu => true,
        TrustMode::Open | TrustMode::Hybrid | TrustMode::Ca => false,
    }
}

/// What is remembered under these rules, before anything was read.
pub(super) fn table(encryption: Option<&Encryption>) -> Owners {
    Owners::new(encryption.is_some_and(keeps))
}

fn refusal(node_id: &str, why: String) -> Refusal {
    Refusal::NotItsId { claimed: node_id.into(), why }
}

/// A certificate that names an id may come with no other; and where authorities vouch for names, it must name its id.
fn names_it(node_id: &str, facts: &CertificateFacts, vouched: bool) -> Result<(), Refusal> {
    if vouched && facts.common_name.as_deref() != Some(node_id) {
        let named = facts.common_name.as_deref().unwrap_or("nobody");
        return Err(refusal(node_id, format!("its authority vouches for {}", printable(named, 128))));
    }
    match facts.common_name.as_ref().filter(|name| is_node_id(name)) {
        Some(named) if named != node_id => Err(refusal(node_id, format!("its certificate names {named}"))),
        Some(_) | None => Ok(()),
    }
}

/// What is known of whose an id is, before any memory is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// An authority or the operator says that it is this key's.
    Proved,
    /// Nobody says anything: a memory decides.
    Open,
}

/// Whether a key may come with this id as far as that is written somewhere.
pub(super) fn claim(
    encryption: &Encryption,
    node_id: &str,
    facts: &CertificateFacts,
    vouched: bool,
    trusted: Option<&Trusted>,
) -> Result<Claim, Refusal> {
    names_it(node_id, facts, vouched)?;
    match trusted.filter(|_| lists(encryption)).map(|trusted| trusted.pair(node_id, &facts.fingerprint)) {
        _ if vouched => Ok(Claim::Proved),
        Some(Pair::Listed) => Ok(Claim::Proved),
        Some(Pair::OfAnother) => {
            Err(refusal(node_id, "the trusted directory gives that id to another key".into()))
        }
        Some(Pair::Elsewhere { named }) => {
            Err(refusal(node_id, format!("the trusted directory gives its key the id {named}")))
        }
        Some(Pair::Unsaid) | None => Ok(Claim::Open),
    }
}

/// What the table is told of keys and connections.
fn with_known<T>(network: &Network, listed: Option<&Trusted>, use_it: impl FnOnce(&Known<'_>) -> T) -> T {
    let connected = |id: &str| network.peers.by_id(id).is_some();
    let trusted = |key: &str| listed.is_none_or(|listed| listed.keys.contains(key));
    use_it(&Known { connected: &connected, trusted: &trusted })
}

fn owners(network: &Network) -> MutexGuard<'_, Owners> {
    network.owners.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a key may come with this id as far as is remembered. Changes nothing.
pub(super) fn may_have(
    network: &Network,
    node_id: &str,
    facts: Option<&CertificateFacts>,
    listed: Option<&Trusted>,
) -> Result<(), Refusal> {
    let Some(facts) = facts else { return Ok(()) };
    let file = Bindings::file_of(node_id);
    let (asked, unowned, keeps) = with_known(network, listed, |known| {
        let owners = owners(network);
        let asked = owners.ask(node_id, &facts.fingerprint, &file, known);
        (asked, owners.key_of(node_id).is_none(), owners.keeps())
    });
    let command = &network.command;
    match asked {
        // Forgotten while it is there: it is not the next one's for that.
        Ok(()) if unowned && network.peers.by_id(node_id).is_some() => {
            Err(Refusal::Duplicate(node_id.into()))
        }
        Ok(()) => Ok(()),
        Err(NotOwned::OfAnother) if keeps => Err(refusal(
            node_id,
            format!("it came with another key before; if it has a new one: {command}trust forget -- {node_id}"),
        )),
        Err(NotOwned::OfAnother) => Err(refusal(
            node_id,
            "it came with another key before, since this node started; until it starts again".into(),
        )),
        Err(NotOwned::Unreadable) => Err(refusal(
            node_id,
            "what is remembered of ids cannot be read; the event id_memory_unreadable says why".into(),
        )),
        Err(NotOwned::Full) => Err(refusal(
            node_id,
            format!(
                "{MAX_BINDINGS} ids are remembered, and no more; {command}trust bindings lists them, trust forget makes room"
            ),
        )),
    }
}

/// A key was let in with this id by these rules, and has its place. An error if the id was given to another one in between, or there are other
/// rules.
pub(super) fn learn(
    network: &Network,
    rules: Option<&Arc<Rules>>,
    node_id: &str,
    facts: &CertificateFacts,
    listed: Option<&Trusted>,
    claim: Claim,
) -> Result<(), Refusal> {
    // One lock for all of it: rules change under it.
    let mut owners = owners(network);
    hold(network, rules)?;
    if claim == Claim::Open {
        let key = owners.key_of(node_id).map(str::to_owned);
        let other = key.is_some_and(|key| {
            key != facts.fingerprint && listed.is_none_or(|listed| listed.keys.contains(&key))
        });
        if other {
            return Err(refusal(node_id, "it was given to another key just now".into()));
        }
    }
    with_known(network, listed, |known| owners.learn(node_id, &facts.fingerprint, known));
    drop(owners);
    network.met.notify_one();
    Ok(())
}

/// An error if there are other rules than these by now: who was judged by them may come again.
pub(super) fn hold(network: &Network, rules: Option<&Arc<Rules>>) -> Result<(), Refusal> {
    match (network.rules(), rules) {
        (Some(now), Some(rules)) if !Arc::ptr_eq(&now, rules) => Err(Refusal::RulesChanged),
        _ => Ok(()),
    }
}

/// The reason where a connected peer's id is another's now.
pub(super) const ID_OF_ANOTHER: &str = "id-of-another";

/// Why a connected peer's id is not its own any more, if that was written or changed since. What cannot be read for the moment changes
/// nothing for who is inside, and what was forgotten is not given to another: whoever comes next decides.
pub(super) async fn lost(
    network: &Network,
    encryption: &Encryption,
    node_id: &str,
    facts: &CertificateFacts,
    vouched: bool,
    trusted: &Trusted,
) -> Option<&'static str> {
    let (key, reason) = match claim(encryption, node_id, facts, vouched, Some(trusted)) {
        Err(_) => return Some(ID_OF_ANOTHER),
        Ok(Claim::Proved) => return None,
        Ok(Claim::Open) if encryption.policy.mode == TrustMode::Tofu => {
            let (bindings, id) = (Bindings::below(&encryption.observed_dir), node_id.to_owned());
            let holder = in_turn(move || bindings.holder(&id)).await;
            (holder?.ok()??, "tofu-mismatch")
        }
        Ok(Claim::Open) => {
            let owners = owners(network);
            // That of a key which is not trusted any more is free.
            let holds = |key: &&str| owners.keeps() && trusted.keys.contains(*key);
            (owners.key_of(node_id).filter(holds)?.to_owned(), ID_OF_ANOTHER)
        }
    };
    (key != facts.fingerprint).then_some(reason)
}

fn bindings(network: &Network) -> Option<Bindings> {
    let rules = network.rules()?;
    keeps(&rules.encryption).then(|| Bindings::below(&rules.encryption.observed_dir))
}

/// Nobody exchanges what is remembered, or changes the rules, while this is held.
async fn held(network: &Network) -> Option<tokio::sync::RwLockReadGuard<'_, ()>> {
    Some(network.security.as_ref()?.memory.read().await)
}

/// The directory whose changes are a reason to [`read`] again.
pub(super) fn dir(network: &Network) -> Option<std::path::PathBuf> {
    bindings(network).map(|bindings| bindings.dir().to_path_buf())
}

fn told(events: &Emitter, action: &'static str, error: &BindingError) {
    events.system(LogLevel::Error, action, error.to_string());
}

/// What came of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Nothing that was not known.
    Same,
    /// Somebody else than this node has changed what is remembered.
    News,
    /// It cannot be read: nobody new is let in on first use.
    Failed,
}

/// What is remembered under these rules, read from where it is; the place for it is made if there is none.
pub(super) async fn table_of(network: &Network, encryption: &Encryption) -> Result<Owners, BindingError> {
    let mut owners = table(Some(encryption));
    if !keeps(encryption) {
        return Ok(owners);
    }
    let bindings = Bindings::below(&encryption.observed_dir);
    let read = tokio::task::spawn_blocking(move || Ok((bindings.prepare()?, bindings.survey()?)));
    let Ok(read) = read.await else { return Ok(owners) };
    let (new, (list, unreadable)) = read?;
    if new {
        let text = "there was none: a trusted key whose certificate in the trusted directory names no id has the id that it comes with first";
        network.events.system(LogLevel::Info, "id_memory_created", text.to_owned());
    }
    owners.adopt(&list, unreadable.keys().cloned().collect());
    unreadable.values().for_each(|error| told(&network.events, "id_memory_unreadable", error));
    Ok(owners)
}

/// Reads what is remembered on disk, where something is, when the node starts.
pub async fn restore(network: &Arc<Network>) {
    let Some(rules) = network.rules() else { return };
    match table_of(network, &rules.encryption).await {
        Ok(table) => *owners(network) = table,
        Err(error) => {
            owners(network).lose();
            told(&network.events, "id_memory_unreadable", &error);
        }
    }
}

/// Changes the rules, and with them what is remembered if it has another place: in one step for whoever [`learn`]s.
pub(super) fn exchange(network: &Network, table: Option<Owners>, change: impl FnOnce()) {
    let mut owners = owners(network);
    if let Some(table) = table {
        *owners = table;
    }
    change();
}

/// The rules have changed, and who is connected is welcome by the new ones too: its id is remembered as if it came now. False if that
/// cannot be done now.
pub(super) async fn remember(
    network: &Network,
    rules: &Arc<Rules>,
    node_id: &str,
    facts: &CertificateFacts,
    vouched: bool,
    trusted: &Trusted,
) -> bool {
    let encryption = &rules.encryption;
    let Ok(claim) = claim(encryption, node_id, facts, vouched, Some(trusted)) else { return false };
    if encryption.policy.mode != TrustMode::Tofu {
        return vouched || learn(network, Some(rules), node_id, facts, Some(trusted), claim).is_ok();
    }
    let _turn = turn().await;
    let _held = held(network).await;
    if hold(network, Some(rules)).is_err() {
        return false; // it is judged by the others
    }
    let bindings = Bindings::below(&encryption.observed_dir);
    let (id, key) = (node_id.to_owned(), facts.fingerprint.clone());
    let kept = tokio::task::spawn_blocking(move || match bindings.meet(&id, &key, false)? {
        // The memory learns what the operator says.
        Meeting::Other { .. } if claim == Claim::Proved => {
            bindings.give(&Binding { node_id: id, fingerprint: key })
        }
        Meeting::First | Meeting::Again | Meeting::Connected | Meeting::Other { .. } => Ok(()),
    });
    let kept = kept.await;
    if let Ok(Err(error)) = &kept {
        told(&network.events, "id_memory_unwritable", error);
    }
    matches!(kept, Ok(Ok(())))
}

/// Reads what is remembered on disk. What is missing is not empty: then nobody new is let in on first use.
pub(super) async fn read(network: &Arc<Network>) -> Read {
    let _held = held(network).await;
    let Some(bindings) = bindings(network) else { return Read::Same };
    let Ok(survey) = tokio::task::spawn_blocking(move || bindings.survey()).await else {
        return Read::Failed;
    };
    match survey {
        Ok((list, unreadable)) => {
            let adopted = owners(network).adopt(&list, unreadable.keys().cloned().collect());
            match adopted {
                Adopted::Same => return Read::Same,
                Adopted::News => {}
                Adopted::Back => {
                    let text =
                        format!("{} ids; every other one goes to whoever comes with it first", list.len());
                    network.events.system(LogLevel::Warn, "id_memory_restored", text);
                }
            }
            unreadable.values().for_each(|error| told(&network.events, "id_memory_unreadable", error));
            Read::News
        }
        Err(error) => {
            if owners(network).lose() {
                told(&network.events, "id_memory_unreadable", &error);
            }
            Read::Failed
        }
    }
}

/// Writes down what is new. Once more at the end of the node.
pub async fn write(network: &Arc<Network>) {
    let _held = held(network).await;
    write_held(network).await;
}

/// The same for who holds the memory.
pub(super) async fn write_held(network: &Arc<Network>) {
    let Some(bindings) = bindings(network) else { return };
    let changes = owners(network).changes();
    if changes.is_empty() {
        return;
    }
    let network = network.clone();
    let written = tokio::task::spawn_blocking(move || {
        let mut first = None;
        for change in changes {
            let done = match &change {
                Change::Keep { binding, replaces } => bindings.keep(binding, replaces.as_deref()),
                Change::Drop(binding) => bindings.release(binding).map(|()| None),
            };
            let done = match done {
                Ok(None) => Done::Yes,
                Ok(Some(key)) => Done::OfAnother(key),
                Err(error) => {
                    first.get_or_insert(error);
                    Done::NotYet
                }
            };
            owners(&network).done(change, done);
        }
        if let Some(error) = first {
            told(&network.events, "id_memory_unwritable", &error);
        }
    });
    let _ = written.await;
}

/// Keeps the disk as the table is, until the network ends.
pub async fn keep(network: Arc<Network>) {
    loop {
        network.met.notified().await;
        write(&network).await;
        tokio::time::sleep(PAUSE).await;
    }
}
