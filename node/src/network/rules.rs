//! What `[encryption]` says, as it holds now, and how it changes while the node runs. Who judges takes the rules once and keeps to them;
//! whoever was judged by older ones is judged again as soon as there are new ones. Does not trust that files can be read or make sense: what
//! cannot be loaded as a whole changes nothing.

use super::rejudge::Trusted;
use super::{ownership, Network};
use crate::config::{Encryption, TrustMode, TrustPolicy};
use crate::security::bindings::{BindingError, Bindings};
use crate::security::tls::Tls;
use crate::security::{chain, directory, pki};
use rustls::pki_types::CertificateDer;
use std::fmt::Debug;
use std::sync::Arc;
use thenodes::events::model::LogLevel;
use tokio::sync::{watch, Notify, RwLock};

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// Own certificate, own key, or the trusted directory.
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    /// TLS does not take them.
    #[error("TLS with the own certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// Authorities are asked, and there is no answer to be had from them.
    #[error("authorities: {0}")]
    Authorities(String),
    /// Ids cannot be remembered.
    #[error("what is remembered of ids: {0}")]
    Memory(#[from] BindingError),
    /// The node runs without encryption.
    #[error("the node runs without encryption: a restart turns it on")]
    NotEncrypted,
    /// Reading did not come to its end.
    #[error("reading the rules: {0}")]
    Unread(#[from] tokio::task::JoinError),
}

/// What `[encryption]` says, ready for use.
pub struct Rules {
    /// Both directions of TLS.
    pub tls: Tls,
    /// What the operator wrote.
    pub encryption: Encryption,
    /// Fingerprint of the own key.
    pub own: String,
    /// The own certificate, and what it is shown with.
    shown: Vec<CertificateDer<'static>>,
}

/// A key of the configuration that says something else than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key, below `encryption`.
    pub key: &'static str,
    /// What it said.
    pub from: String,
    /// What it says.
    pub to: String,
}

impl Rules {
    /// Loads the own certificate and its key. Reads files: not for a worker.
    pub fn load(encryption: &Encryption) -> Result<Self, RulesError> {
        let own = pki::load(encryption)?;
        let tls = Tls::new(&own, encryption.mtls)?;
        Ok(Self { tls, encryption: encryption.clone(), own: own.fingerprint, shown: own.chain })
    }

    /// What these say otherwise than those before them.
    pub fn differences(&self, before: &Rules) -> Vec<Difference> {
        let mut all = Vec::new();
        let mut one = |key: &'static str, from: &dyn Debug, to: &dyn Debug| {
            let (from, to) = (format!("{from:?}"), format!("{to:?}"));
            if from != to {
                all.push(Difference { key, from, to });
            }
        };
        let was = &before.encryption;
        // Taken apart, so that nothing is left out.
        let Encryption {
            mtls,
            own_certificate,
            own_private_key,
            trusted_dir,
            observed_dir,
            rejected_dir,
            authorities,
            policy,
        } = &self.encryption;
        let TrustPolicy {
            mode,
            reject_expired,
            reject_before_valid,
            realm_subject_binding,
            pin_subjects,
            pin_fingerprints,
            store_observed,
            enforce_chain,
        } = policy;
        one("mtls", &was.mtls, mtls);
        one("paths.own_certificate", &was.own_certificate, own_certificate);
        one("paths.own_private_key", &was.own_private_key, own_private_key);
        one("paths.trusted_cert_dir", &was.trusted_dir, trusted_dir);
        one("paths.rejected_dir", &was.rejected_dir, rejected_dir);
        one("paths.issuer_cert_dir", &was.authorities.issuers, &authorities.issuers);
        one("paths of revocation lists", &was.authorities.lists, &authorities.lists);
        one("accept_self_signed", &was.authorities.self_signed, &authorities.self_signed);
        let is = &was.policy;
        one("trust_policy.mode", &format_args!("{}", is.mode.word()), &format_args!("{}", mode.word()));
        one("trust_policy.paths.observed_dir", &was.observed_dir, observed_dir);
        one("trust_policy.reject_expired", &is.reject_expired, reject_expired);
        one("trust_policy.reject_before_valid", &is.reject_before_valid, reject_before_valid);
        one("trust_policy.realm_subject_binding", &is.realm_subject_binding, realm_subject_binding);
        one("trust_policy.pin_subjects", &is.pin_subjects, pin_subjects);
        one("trust_policy.pin_fingerprints", &is.pin_fingerprints, pin_fingerprints);
        one("trust_policy.store_new_certs", &is.store_observed, store_observed);
        one("trust_policy.enforce_ca_chain", &is.enforce_chain, enforce_chain);
        if self.shown != before.shown {
            let (from, to) = (before.own.clone(), self.own.clone());
            all.push(Difference { key: "own certificate", from, to });
        }
        all
    }

    /// True if those whom these rules let in as well as others have to be remembered anew: in another place, or because no authority says
    /// any more whose an id is.
    pub(super) fn remember_anew(&self, before: &Rules) -> bool {
        let asks = |rules: &Rules| rules.encryption.policy.needs_chain();
        self.memory() != before.memory() || (asks(before) && !asks(self))
    }

    /// Where ids are remembered on disk, if they are: by the table of owners (true) or at each first use.
    fn memory(&self) -> Option<(bool, &std::path::Path)> {
        let table = ownership::keeps(&self.encryption);
        let remembers = table || self.encryption.policy.mode == TrustMode::Tofu;
        remembers.then_some((table, &*self.encryption.observed_dir))
    }
}

/// The rules in force, and the keys that the operator trusted when somebody looked last.
#[derive(Clone)]
pub struct Now {
    /// Rules.
    pub rules: Arc<Rules>,
    /// Keys.
    pub trusted: Trusted,
}

/// The rules as they change.
pub struct Security {
    now: watch::Sender<Now>,
    /// There are others.
    pub(super) changed: Notify,
    /// Held by who reads or writes what is remembered of ids, and alone by who exchanges it: under it rules do not change.
    pub(super) memory: Arc<RwLock<()>>,
    /// Held by who reads the configuration again.
    adopting: tokio::sync::Mutex<()>,
}

impl Security {
    /// These rules.
    pub fn new(rules: Rules) -> Self {
        let now = watch::Sender::new(Now { rules: Arc::new(rules), trusted: Trusted::default() });
        Self { now, changed: Notify::new(), memory: Default::default(), adopting: Default::default() }
    }

    /// The rules as they are now.
    pub fn rules(&self) -> Arc<Rules> {
        self.now.borrow().rules.clone()
    }

    /// The same, with whom the operator trusts.
    pub(super) fn now(&self) -> Now {
        self.now.borrow().clone()
    }

    /// What changes from now on; a new value, even an equal one, is a reason to judge again.
    pub(super) fn subscribe(&self) -> watch::Receiver<Now> {
        self.now.subscribe()
    }

    /// Somebody has looked, under these rules. If there are others by now, they have been told with a look of their own.
    pub(super) fn looked(&self, rules: &Arc<Rules>, trusted: Trusted) {
        self.now.send_if_modified(|now| {
            let same = Arc::ptr_eq(&now.rules, rules);
            if same {
                now.trusted = trusted;
            }
            same
        });
    }
}

/// What came of reading the configuration again.
#[derive(Debug)]
pub struct Adopted {
    /// What is new.
    pub changed: Vec<Difference>,
    /// Keys below `encryption` that were written and have no effect.
    pub without_effect: Vec<String>,
    /// Connected peers that are judged again for that.
    pub peers: usize,
}

/// Has what `read` says hold from now on: for whoever comes, and for who is connected. An error leaves everything as it was. In the task of who
/// asks; one at a time, from reading to the end.
pub async fn adopt<E: From<RulesError> + Send + 'static>(
    network: &Arc<Network>,
    read: impl FnOnce() -> Result<(Encryption, Vec<String>), E> + Send + 'static,
) -> Result<Adopted, E> {
    let Some(security) = &network.security else { return Err(RulesError::NotEncrypted.into()) };
    let _one = security.adopting.lock().await;
    let loaded = tokio::task::spawn_blocking(move || {
        let (encryption, without_effect) = read()?;
        Ok::<_, E>((load_all(&encryption)?, without_effect))
    });
    let ((rules, trusted), without_effect) = loaded.await.map_err(RulesError::from)??;
    let before = security.rules();
    let changed = rules.differences(&before);
    if changed.is_empty() {
        return Ok(Adopted { changed, without_effect, peers: 0 });
    }
    // Nobody writes to the old place any more.
    let _memory = security.memory.write().await;
    let table = if rules.memory() == before.memory() {
        None
    } else {
        ownership::write_held(network).await;
        prepare_first_use(network, &rules.encryption).await.map_err(RulesError::from)?;
        Some(ownership::table_of(network, &rules.encryption).await.map_err(RulesError::from)?)
    };
    // Whoever was trusted meanwhile is.
    let dir = rules.encryption.trusted_dir.clone();
    let newest = tokio::task::spawn_blocking(move || directory::trusted(&dir)).await;
    let trusted = newest.map_err(RulesError::from)?.map_or(trusted, Arc::new);
    let peers = network.peers.count().0;
    ownership::exchange(network, table, || {
        security.now.send_replace(Now { rules, trusted });
    });
    security.changed.notify_one();
    Ok(Adopted { changed, without_effect, peers })
}

/// Everything that judging will read. Not for a worker.
fn load_all(encryption: &Encryption) -> Result<(Arc<Rules>, Trusted), RulesError> {
    let rules = Rules::load(encryption)?;
    // Rules under which nobody could be judged are none.
    let trusted = match directory::trusted(&encryption.trusted_dir) {
        Err(_) if !ownership::lists(encryption) => directory::Trusted::default(),
        trusted => trusted?,
    };
    if encryption.policy.needs_chain() {
        chain::usable(&encryption.authorities).map_err(RulesError::Authorities)?;
    }
    Ok((Arc::new(rules), Arc::new(trusted)))
}

/// In mode `tofu` makes the place for what is remembered, if there is none.
pub async fn prepare_first_use(network: &Network, encryption: &Encryption) -> Result<(), BindingError> {
    if encryption.policy.mode != TrustMode::Tofu {
        return Ok(());
    }
    let bindings = Bindings::below(&encryption.observed_dir);
    if tokio::task::spawn_blocking(move || bindings.prepare()).await.unwrap_or(Ok(false))? {
        let text = "there was none: every node id goes to whoever comes with it first".to_owned();
        network.events.system(LogLevel::Warn, "tofu_memory_created", text);
    }
    Ok(())
}
