//! Whose a node id is. A peer with a certificate may use an id if an authority vouches for it, if the operator's directory pairs it with its
//! key, or if nobody's key came with that id first. Each of the three is asked only where the one before it has no answer. Does not trust
//! what a certificate says of its own name: whoever has a trusted key can write another one.

use super::handshake::Refusal;
use super::Network;
use crate::config::{is_node_id, Encryption, TrustMode};
use crate::events::Emitter;
use crate::security::bindings::{BindingError, Bindings, MAX_BINDINGS};
use crate::security::directory::{Pair, Trusted};
use crate::security::owners::{Change, NotOwned, Owners};
use crate::security::pki::CertificateFacts;
use crate::text::printable;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use thenodes::events::model::LogLevel;

/// Between two writings: what comes meanwhile is written together.
const PAUSE: Duration = Duration::from_millis(100);

/// True where ids that keys came with are kept on disk, and who is in the table counts.
fn keeps(encryption: &Encryption) -> bool {
    matches!(encryption.policy.mode, TrustMode::Allowlist | TrustMode::Observe)
        && !encryption.policy.needs_chain()
}

/// True where the operator's directory says who is let in, and so whose certificates name ids for him.
fn lists(encryption: &Encryption) -> bool {
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
    network: &Network,
    node_id: &str,
    facts: &CertificateFacts,
    vouched: bool,
    trusted: Option<&Trusted>,
) -> Result<Claim, Refusal> {
    names_it(node_id, facts, vouched)?;
    let listed = network.security.as_ref().is_some_and(|(_, encryption)| lists(encryption));
    match trusted.filter(|_| listed).map(|trusted| trusted.pair(node_id, &facts.fingerprint)) {
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

/// Whether a key may come with this id as far as is remembered; it is the first if nobody was.
pub(super) fn first_key(network: &Network, node_id: &str, facts: &CertificateFacts) -> Result<(), Refusal> {
    let mut owners = network.owners.lock().unwrap_or_else(PoisonError::into_inner);
    let met = owners.meet(node_id, &facts.fingerprint, &Bindings::file_of(node_id));
    drop(owners);
    let command = &network.command;
    Err(refusal(
        node_id,
        match met {
            Ok(()) => {
                network.met.notify_one();
                return Ok(());
            }
            Err(NotOwned::OfAnother) => {
                format!("it came with another key before; if it has a new one: {command}trust forget -- {node_id}")
            }
            Err(NotOwned::Unreadable) => {
                "what is remembered of ids cannot be read; the event id_memory_unreadable says why".into()
            }
            Err(NotOwned::Full) => format!(
                "{MAX_BINDINGS} ids are remembered, and no more; {command}trust bindings lists them, trust forget makes room"
            ),
        },
    ))
}

/// Why a connected peer's id is not its own any more, if that was written or changed since.
pub(super) fn lost(
    network: &Network,
    node_id: &str,
    facts: &CertificateFacts,
    vouched: bool,
    trusted: &Trusted,
) -> Option<&'static str> {
    match claim(network, node_id, facts, vouched, Some(trusted)) {
        Err(_) => Some("id-of-another"),
        Ok(Claim::Proved) => None,
        Ok(Claim::Open) => {
            let owners = network.owners.lock().unwrap_or_else(PoisonError::into_inner);
            // Forgotten is not given to another: whoever comes next decides.
            owners
                .key_of(node_id)
                .is_some_and(|key| owners.keeps() && key != facts.fingerprint)
                .then_some("id-of-another")
        }
    }
}

fn bindings(network: &Network) -> Option<Bindings> {
    let (_, encryption) = network.security.as_ref()?;
    keeps(encryption).then(|| Bindings::below(&encryption.observed_dir))
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

/// Reads what is remembered on disk, where something is, when the node starts; makes the place for it if there is none.
pub async fn restore(network: &Arc<Network>) {
    let Some(bindings) = bindings(network) else { return };
    match tokio::task::spawn_blocking(move || bindings.prepare()).await {
        Ok(Ok(true)) => {
            let text = "there was none: a trusted key whose certificate in the trusted directory names no id has the id that it comes with first";
            network.events.system(LogLevel::Info, "id_memory_created", text.to_owned());
        }
        // What is wrong is seen, and told, by reading.
        Ok(Ok(false) | Err(_)) | Err(_) => {}
    }
    read(network).await;
}

/// Reads what is remembered on disk. What is missing is not empty: then nobody new is let in on first use.
pub(super) async fn read(network: &Arc<Network>) -> Read {
    let Some(bindings) = bindings(network) else { return Read::Same };
    let Ok(survey) = tokio::task::spawn_blocking(move || bindings.survey()).await else {
        return Read::Failed;
    };
    let lock = || network.owners.lock().unwrap_or_else(PoisonError::into_inner);
    match survey {
        Ok((list, unreadable)) => {
            if !lock().adopt(&list, unreadable.keys().cloned().collect()) {
                return Read::Same;
            }
            unreadable.values().for_each(|error| told(&network.events, "id_memory_unreadable", error));
            Read::News
        }
        Err(error) => {
            if lock().lose() {
                told(&network.events, "id_memory_unreadable", &error);
            }
            Read::Failed
        }
    }
}

/// Writes down what is new. Once more at the end of the node.
pub async fn write(network: &Arc<Network>) {
    let Some(bindings) = bindings(network) else { return };
    let changes = network.owners.lock().unwrap_or_else(PoisonError::into_inner).changes();
    if changes.is_empty() {
        return;
    }
    let network = network.clone();
    let written = tokio::task::spawn_blocking(move || {
        let mut first = None;
        for change in &changes {
            let done = match change {
                Change::Keep(binding) => bindings.give(binding),
                Change::Drop(id) => bindings.forget(id).map(drop),
            };
            if let Err(error) = done {
                network.owners.lock().unwrap_or_else(PoisonError::into_inner).undone(change);
                first.get_or_insert(error);
            }
        }
        if let Some(error) = first {
            told(&network.events, "id_memory_unwritable", &error);
        }
    });
    let _ = written.await;
}

/// Keeps the disk as the table is, until the network ends.
pub async fn keep(network: Arc<Network>) {
    if bindings(&network).is_none() {
        return;
    }
    loop {
        network.met.notified().await;
        write(&network).await;
        tokio::time::sleep(PAUSE).await;
    }
}
