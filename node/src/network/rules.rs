//! What `[encryption]` says, as it holds now, and how it changes while the node runs. Who judges takes the rules once and keeps to them;
//! whoever was judged by older ones is judged again as soon as there are new ones. Does not trust that files can be read: what cannot be
//! loaded changes nothing.

use super::{ownership, Network};
use crate::config::{Encryption, TrustMode};
use crate::security::bindings::{BindingError, Bindings, Meeting};
use crate::security::tls::Tls;
use crate::security::{directory, pki};
use std::sync::{Arc, Mutex, PoisonError};
use thenodes::events::model::LogLevel;
use tokio::sync::Notify;

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// Own certificate, own key, or the trusted directory.
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    /// TLS does not take them.
    #[error("TLS with the own certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// The node ends.
    #[error("the node ends: {0}")]
    Ending(#[from] tokio::task::JoinError),
    /// The node runs without encryption.
    #[error("the node runs without encryption: a restart turns it on")]
    NotEncrypted,
}

/// What `[encryption]` says, ready for use.
pub struct Rules {
    /// Both directions of TLS.
    pub tls: Tls,
    /// What the operator wrote.
    pub encryption: Encryption,
    /// Fingerprint of the own key.
    pub own: String,
    /// The own certificate.
    certificate: Vec<u8>,
}

impl Rules {
    /// Loads the own certificate and its key. Reads files: not for a worker.
    pub fn load(encryption: &Encryption) -> Result<Self, RulesError> {
        let own = pki::load(encryption)?;
        let certificate = own.chain.first().map_or_else(Vec::new, |first| first.to_vec());
        let tls = Tls::new(&own, encryption.mtls)?;
        Ok(Self { tls, encryption: encryption.clone(), own: own.fingerprint, certificate })
    }

    /// What these say otherwise than others, in the words of the configuration.
    pub fn differences(&self, other: &Rules) -> Vec<&'static str> {
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
        let (
            of,
            crate::config::TrustPolicy {
                mode,
                reject_expired,
                reject_before_valid,
                realm_subject_binding,
                pin_subjects,
                pin_fingerprints,
                store_observed,
                enforce_chain,
            },
        ) = (&other.encryption, policy);
        let is = &of.policy;
        [
            ("mtls", *mtls != of.mtls),
            ("paths.own_certificate", *own_certificate != of.own_certificate),
            ("paths.own_private_key", *own_private_key != of.own_private_key),
            ("own certificate", self.certificate != other.certificate),
            ("paths.trusted_cert_dir", *trusted_dir != of.trusted_dir),
            ("trust_policy.paths.observed_dir", *observed_dir != of.observed_dir),
            ("paths.rejected_dir", *rejected_dir != of.rejected_dir),
            (
                "paths of authorities and lists",
                authorities.issuers != of.authorities.issuers || authorities.lists != of.authorities.lists,
            ),
            ("accept_self_signed", authorities.self_signed != of.authorities.self_signed),
            ("trust_policy.mode", *mode != is.mode),
            ("trust_policy.reject_expired", *reject_expired != is.reject_expired),
            ("trust_policy.reject_before_valid", *reject_before_valid != is.reject_before_valid),
            ("trust_policy.realm_subject_binding", *realm_subject_binding != is.realm_subject_binding),
            ("trust_policy.pin_subjects", *pin_subjects != is.pin_subjects),
            ("trust_policy.pin_fingerprints", *pin_fingerprints != is.pin_fingerprints),
            ("trust_policy.store_new_certs", *store_observed != is.store_observed),
            ("trust_policy.enforce_ca_chain", *enforce_chain != is.enforce_chain),
        ]
        .into_iter()
        .filter_map(|(word, differs)| differs.then_some(word))
        .collect()
    }
}

/// The rules in force.
pub struct Security {
    now: Mutex<Arc<Rules>>,
    /// There are others.
    pub(super) changed: Notify,
    /// Held by who reads, writes or exchanges what is remembered of ids.
    pub(super) memory: tokio::sync::Mutex<()>,
}

impl Security {
    /// These rules.
    pub fn new(rules: Rules) -> Self {
        Self {
            now: Mutex::new(Arc::new(rules)),
            changed: Notify::new(),
            memory: tokio::sync::Mutex::default(),
        }
    }

    /// The rules as they are now.
    pub fn rules(&self) -> Arc<Rules> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, rules: Arc<Rules>) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }
}

/// Reads what `encryption` names, and has it hold from now on: for whoever comes, and for who is connected. Says what is new, in the words of
/// the configuration; an error leaves everything as it was. In the task of who asks.
pub async fn adopt(network: &Arc<Network>, encryption: Encryption) -> Result<Vec<&'static str>, RulesError> {
    let Some(security) = &network.security else { return Err(RulesError::NotEncrypted) };
    let loaded = tokio::task::spawn_blocking(move || {
        // Rules under which nobody could be judged are none.
        let trusted = directory::trusted(&encryption.trusted_dir)?;
        Ok::<_, RulesError>((Arc::new(Rules::load(&encryption)?), trusted))
    });
    let (rules, trusted) = loaded.await??;
    // One at a time, and nobody writes down ids for the old place any more.
    let memory = security.memory.lock().await;
    let before = security.rules();
    let new = rules.differences(&before);
    if new.is_empty() {
        return Ok(new);
    }
    ownership::write_held(network).await;
    let connected = ownership::connected(network);
    security.replace(rules.clone());
    let place = |rules: &Rules| (ownership::keeps(&rules.encryption), rules.encryption.observed_dir.clone());
    if place(&rules) != place(&before) {
        ownership::renew(network, &rules.encryption, &connected, &trusted).await;
    }
    drop(memory);
    prepare_first_use(network, connected).await;
    security.changed.notify_one();
    Ok(new)
}

/// In mode `tofu` makes the place for what is remembered, if there is none, and remembers who is connected. Without it nobody is let in on
/// first use, and each refusal says so; a node of trusted keys goes on.
pub async fn prepare_first_use(network: &Network, connected: Vec<(String, String)>) {
    let Some(rules) = network.rules() else { return };
    let encryption = &rules.encryption;
    if encryption.policy.mode != TrustMode::Tofu {
        return;
    }
    let bindings = Bindings::below(&encryption.observed_dir);
    let prepared = tokio::task::spawn_blocking(move || {
        let new = bindings.prepare()?;
        for (node_id, key) in &connected {
            // Another's id: whoever has it is judged again, and finds out.
            let _: Meeting = bindings.meet(node_id, key, false)?;
        }
        Ok::<bool, BindingError>(new)
    });
    let events = &network.events;
    match prepared.await {
        Ok(Ok(true)) => events.system(
            LogLevel::Warn,
            "tofu_memory_created",
            "there was none: every node id goes to whoever comes with it first".to_owned(),
        ),
        Ok(Ok(false)) | Err(_) => {}
        Ok(Err(error)) => events.system(LogLevel::Error, "tofu_memory_missing", error.to_string()),
    }
}
