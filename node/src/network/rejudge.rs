//! Peers that are connected are judged again when the operator changes whom he trusts, and every minute besides, since certificates
//! grow old. One task looks at the directory; each session judges its own peer, with the rules of the handshake. What cannot be read
//! for the moment changes nothing for those who are inside, and lets nobody new in (that is [`channel`]'s).

use super::channel::{self, tell, Chain};
use super::ownership::{self, Read};
use super::peers::Direction;
use super::rules::{Now, Rules};
use super::Network;
use crate::config::{Encryption, TrustMode};
use crate::security::bindings::Bindings;
use crate::security::chain::Anchor;
use crate::security::directory;
use crate::security::pki::CertificateFacts;
use crate::security::trust::{self, Decision, Verdict};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use thenodes::events::model::{LogEvent, LogLevel, PromotionEvent};
use thenodes::host::PeerInfo;
use tokio::sync::{watch, Semaphore, SemaphorePermit};

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// After so long everybody is judged again, whatever happened.
const AT_LEAST: Duration = Duration::from_secs(60);

/// The keys that are trusted now; a new value, even an equal one, is a reason to judge again.
pub type Trusted = Arc<directory::Trusted>;

/// Names, sizes and times of the files: changes when one is added, removed or written.
type Stamp = Vec<(std::ffi::OsString, u64, Option<SystemTime>)>;

fn stamp(dir: &Path) -> Stamp {
    let Ok(entries) = fs::read_dir(dir) else { return Stamp::new() };
    let mut stamp: Stamp = entries
        .flatten()
        .filter_map(|entry| {
            let about = entry.metadata().ok()?;
            Some((entry.file_name(), about.len(), about.modified().ok()))
        })
        .collect();
    stamp.sort();
    stamp
}

/// Looks at the directories of trust until the network ends. Returns at once where nobody is judged.
pub async fn look(network: Arc<Network>) {
    let Some(security) = &network.security else { return };
    let mut owned_before: Option<Stamp> = None;
    let mut last: Option<(Stamp, Vec<Stamp>)> = None;
    let mut told = Instant::now();
    let mut known: Option<(PathBuf, Trusted)> = None;
    let mut news = false;
    loop {
        let rules = security.rules();
        let encryption = &rules.encryption;
        let (dir, dirs, before) = (encryption.trusted_dir.clone(), others(encryption), last.clone());
        if let Some(dir) = ownership::dir(&network) {
            let stamps = tokio::task::spawn_blocking(move || stamp(&dir)).await.ok();
            if stamps != owned_before {
                owned_before = match ownership::read(&network).await {
                    // Of what this node writes there itself nothing is news.
                    Read::Same => stamps,
                    Read::News => {
                        news = true;
                        stamps
                    }
                    Read::Failed => None,
                };
            }
        }
        let due = std::mem::take(&mut news) || told.elapsed() >= AT_LEAST;
        let looked = tokio::task::spawn_blocking(move || {
            // First the stamp: what is written between the two is seen the next time.
            let stamps = (stamp(&dir), dirs.iter().map(|dir| stamp(dir)).collect());
            (due || before.as_ref() != Some(&stamps)).then(|| (stamps, directory::trusted(&dir)))
        });
        if let Ok(Some((stamps, set))) = looked.await {
            match set {
                Ok(set) => {
                    let set: Trusted = Arc::new(set);
                    // Those of another directory are not new ones.
                    if let Some((_, before)) = known.filter(|(of, _)| *of == encryption.trusted_dir) {
                        set.keys.difference(&before.keys).for_each(|new| promoted(&network, encryption, new));
                    }
                    // The first look is no change.
                    if last.is_some() {
                        security.looked(&rules, set.clone());
                    }
                    known = Some((encryption.trusted_dir.clone(), set));
                }
                Err(error) => {
                    tracing::error!("trusted certificates: {error}; connected peers stay as they are")
                }
            }
            (last, told) = (Some(stamps), Instant::now());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = security.changed.notified() => {
                // Everybody was told; what is looked at may be elsewhere now.
                (news, owned_before) = (true, None);
                let Now { rules, trusted } = security.now();
                let dir = &rules.encryption.trusted_dir;
                if known.as_ref().is_none_or(|(of, _)| of != dir) {
                    known = Some((dir.clone(), trusted));
                }
            }
        }
    }
}

/// The directories beside that of trusted keys whose changes are a reason to judge again.
fn others(encryption: &Encryption) -> Vec<PathBuf> {
    let mut others: Vec<PathBuf> = Vec::new();
    if encryption.policy.needs_chain() {
        others.push(encryption.authorities.issuers.clone());
        others.extend(encryption.authorities.lists.iter().cloned());
    }
    if encryption.policy.mode == TrustMode::Tofu {
        others.push(Bindings::below(&encryption.observed_dir).dir().to_path_buf());
    }
    others
}

/// A key is trusted that was not before: by the prompt, the command line, or a file that somebody put there.
fn promoted(network: &Network, encryption: &Encryption, fingerprint: &str) {
    let observed = encryption.observed_dir.join(format!("{fingerprint}.pem")).exists();
    network.events.emit(LogEvent::Promotion(PromotionEvent {
        meta: network.events.meta(LogLevel::Info),
        fingerprint: fingerprint.to_owned(),
        from_store: if observed { "observed" } else { "none" }.into(),
        to_store: "trusted".into(),
        operator: "files".into(),
        success: true,
    }));
}

/// Ends with the reason when this peer is not welcome any more.
pub(super) async fn until_unwelcome(
    network: &Network,
    peer: &PeerInfo,
    direction: Direction,
    shown: (Option<&CertificateFacts>, Option<&Chain>),
    judged: Option<(Arc<Rules>, watch::Receiver<Now>)>,
) -> String {
    let Some((mut by, mut now)) = judged else { return std::future::pending().await };
    loop {
        if now.changed().await.is_err() {
            return std::future::pending().await; // the node ends, and so do sessions
        }
        let newest = now.borrow_and_update().clone();
        let rules = newest.rules.clone();
        // On the heap: a connection waits here all its life, and is judged for a moment now and then.
        let judged = Box::pin(judge_again(network, newest, peer, direction, shown, &by));
        match judged.await {
            Again::Stays => by = rules,
            Again::Unknown => {}
            Again::Goes(reason) => return format!("certificate refused: {reason} (judged again)"),
        }
    }
}

/// What another judgement comes to.
enum Again {
    /// It is welcome, by the rules as they are now.
    Stays,
    /// It is welcome, or that is not known for the moment; nothing changes for it until it is judged next.
    Unknown,
    /// It has to go, for this reason, which is on record.
    Goes(&'static str),
}

/// Judges a peer that is connected, and was judged by those rules before.
async fn judge_again(
    network: &Network,
    Now { rules, trusted }: Now,
    peer: &PeerInfo,
    direction: Direction,
    (facts, chain): (Option<&CertificateFacts>, Option<&Chain>),
    by: &Arc<Rules>,
) -> Again {
    let encryption = &rules.encryption;
    // Of who came in when no path was asked for, no certificates are kept: it may come again, and show them.
    let path = match chain.filter(|_| encryption.policy.needs_chain()).cloned() {
        None => None,
        Some(chain) => {
            let authorities = encryption.authorities.clone();
            let looked = in_turn(move || chain.check(&authorities, channel::now())).await;
            Some(looked.unwrap_or(Err("authorities-unreadable")))
        }
    };
    let unknown = path == Some(Err("authorities-unreadable"));
    let vouched = path == Some(Ok(Anchor::Authority));
    // Where authorities have no answer for the moment, it is asked for everything else.
    let path = if unknown { Some(Ok(())) } else { path.map(|path| path.map(drop)) };
    let (realm, keys) = (&network.local.realm.name, Some(&trusted.keys));
    let mut verdict = trust::judge(&encryption.policy, facts, keys, path, realm, channel::now());
    if encryption.mtls && facts.is_none() {
        // The handshake asks for one now.
        verdict = Verdict::refused("client-certificate-missing");
    }
    // On first use it was let in already; whether the id is still its own is the next question.
    if let (Decision::Accept | Decision::AskMemory, Some(facts)) = (verdict.decision, facts) {
        verdict.decision = Decision::Accept;
        if unknown {
            return Again::Unknown;
        }
        if let Some(reason) =
            ownership::lost(network, encryption, &peer.node_id, facts, vouched, &trusted).await
        {
            (verdict.decision, verdict.reason) = (Decision::Reject, reason);
        }
    }
    if verdict.decision != Decision::Reject {
        let anew = !Arc::ptr_eq(&rules, by) && rules.remember_anew(by);
        let Some(facts) = facts.filter(|_| anew) else { return Again::Stays };
        // What cannot be done now is tried again when it is judged next.
        let done = ownership::remember(network, &rules, &peer.node_id, facts, vouched, &trusted).await;
        return if done { Again::Stays } else { Again::Unknown };
    }
    let event = channel::event(network, encryption, &verdict, facts, direction, peer.addr);
    tell(&network.events, event, false);
    Again::Goes(verdict.reason)
}

/// Looks that may be on the way at the same time: thousands of peers that are judged again must not make hundreds of threads.
static LOOKING: Semaphore = Semaphore::const_new(4);

/// One of those.
pub(super) async fn turn() -> Option<SemaphorePermit<'static>> {
    LOOKING.acquire().await.ok()
}

/// Does what may block on a thread of its own, in turns.
pub(super) async fn in_turn<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let _turn = turn().await;
    tokio::task::spawn_blocking(look).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_comes_changes_or_goes_is_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let none = stamp(dir.path());
        assert_eq!(none, stamp(&dir.path().join("missing")), "no directory is an empty one");
        let file = dir.path().join("a.pem");
        fs::write(&file, "1").expect("written");
        let one = stamp(dir.path());
        fs::write(&file, "22").expect("written");
        let other = stamp(dir.path());
        fs::remove_file(&file).expect("removed");
        assert!(none != one && one != other && stamp(dir.path()) == none);
    }
}
