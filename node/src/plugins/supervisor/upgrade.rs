//! A new version takes the place of an old one while calls go on: the new process starts beside the old, says that it is well, gets the
//! callers, and only then the old one stops, when its last call has ended. If the new one asks for the old one's state, the old one has to
//! stop first, and callers wait at the door meanwhile. A new version that does not get so far changes nothing; one that dies within its
//! probation is replaced by the one before. What it says of itself is not believed: a process that lives and answers is.

use super::process::{News, Order, Running};
use super::stop::Farewell;
use super::Supervisor;
use crate::plugins::lifecycle::{Cause, Event, State, Then};
use crate::plugins::version::Version;
use crate::plugins::way::{Door, Way};
use std::sync::Arc;
use std::time::Instant;
use thenodes::host::HostError;
use thenodes_ipc::{Code, Generation};
use tokio::sync::oneshot;

/// Old processes of one plugin that may be finishing when another upgrade begins.
const MAX_LEAVING: usize = 4;

/// Says what became of an upgrade: the version that runs now, or why not.
pub(crate) type Answer = oneshot::Sender<Result<String, HostError>>;

/// A new version on its way.
pub(super) struct Upgrade {
    /// Its process, until it takes the old one's place.
    pub(super) candidate: Option<Running>,
    /// It waits for the old one's state.
    wants: Option<oneshot::Sender<Option<Arc<[u8]>>>>,
    version: Arc<Version>,
    /// The old one served when this began; so there is something to go back to.
    old: Option<Arc<Version>>,
    answer: Answer,
}

impl Supervisor {
    /// Begins an upgrade, or takes the version for the next start if nobody wants the plugin to run.
    pub(super) async fn replace(&mut self, version: Arc<Version>, answer: Answer) {
        let busy =
            |what: &str| Err(HostError::new(Code::Conflict, format!("plugin {}: {what}", self.shared.name)));
        if self.upgrade.is_some() {
            let _ = answer.send(busy("another upgrade is under way; wait for it"));
            return;
        }
        if self.leaving.len() >= MAX_LEAVING {
            let _ = answer
                .send(busy("older versions are still finishing their calls; try again in half a minute"));
            return;
        }
        match self.life.state {
            State::Stopping { .. } => {
                let _ = answer.send(busy("it is stopping; try again in a moment"));
            }
            State::Untrusted | State::Available | State::Stopped => {
                self.version = version;
                self.note_on_shelf().await;
                self.step(Event::TimerFired); // changes nothing but what is shown
                let _ = answer.send(Ok(self.version.label()));
            }
            State::Loading
            | State::Initializing
            | State::Ready
            | State::Degraded
            | State::Backoff { .. }
            | State::Failed { .. } => {
                let old = self.life.state.serves().then(|| self.version.clone());
                let candidate = Some(self.begin(version.clone(), true));
                self.upgrade = Some(Upgrade { candidate, wants: None, version, old, answer });
            }
        }
    }

    pub(super) async fn hear_candidate(&mut self, generation: Generation, news: News) {
        let Some(upgrade) = &mut self.upgrade else { return };
        let Some(candidate) = &mut upgrade.candidate else { return };
        candidate.note(&news);
        match news {
            News::Started(_)
            | News::Walls(..)
            | News::Registered(_)
            | News::Healthy
            | News::Missed(_)
            | News::Left(_)
            | News::Died(_) => {}
            News::WantsState(give) => {
                if self.life.state.serves() {
                    upgrade.wants = Some(give);
                    self.step(Event::HandOver);
                } else {
                    let _ = give.send(self.kept.give(generation, &upgrade.version.image.sha256));
                }
            }
            News::Loaded(way) => self.promote(way).await,
            News::Ended(cause) => self.candidate_died(generation, cause),
        }
    }

    /// The new process is well: callers go to it from here on, and the old one finishes what it has.
    async fn promote(&mut self, way: Way) {
        let Some(upgrade) = &mut self.upgrade else { return };
        let Some(candidate) = upgrade.candidate.take() else { return };
        let (old, version) = (upgrade.old.clone(), upgrade.version.clone());
        if matches!(self.life.state, State::Stopping { .. }) || !self.may_run() {
            candidate.tell(Order::Stop(Farewell::STOP));
            self.leaving.push(candidate);
            return self.give_up_upgrade("it was stopped meanwhile");
        }
        self.kept.taken();
        // From the moment of this line nobody enters the old one any more.
        self.door.send_replace(Door::Open(way));
        if let Some(before) = self.current.replace(candidate) {
            before.tell(Order::Stop(Farewell::REPLACED));
            self.leaving.push(before);
        }
        self.version = version;
        let probation = self.begin_probation(old);
        self.show_process();
        self.step(Event::Promoted { probation });
        self.tell_ready();
        self.finish_upgrade().await;
    }

    fn may_run(&self) -> bool {
        !matches!(self.life.state, State::Untrusted | State::Available | State::Stopped)
    }

    /// The old process has stopped and left what it left: the new one goes on with its start, in its place.
    pub(super) async fn hand_over(&mut self) {
        let Some(upgrade) = &mut self.upgrade else { return };
        let Some(candidate) = upgrade.candidate.take() else { return };
        let (old, version) = (upgrade.old.clone(), upgrade.version.clone());
        let state = self.kept.give(candidate.generation, &version.image.sha256);
        if let Some(wants) = upgrade.wants.take() {
            let _ = wants.send(state);
        }
        self.leaving.extend(self.current.replace(candidate));
        self.version = version;
        let probation = self.begin_probation(old);
        self.show_process();
        self.step(Event::HandedOver { probation });
    }

    /// The old process died instead of leaving something. The new one has nothing to wait for.
    pub(super) fn answer_candidate_without_state(&mut self) {
        if let Some(wants) = self.upgrade.as_mut().and_then(|upgrade| upgrade.wants.take()) {
            let _ = wants.send(None);
        }
    }

    fn begin_probation(&mut self, old: Option<Arc<Version>>) -> Option<Instant> {
        self.previous = old;
        self.probation_ends =
            self.previous.as_ref().map(|_| Instant::now() + self.keeping.supervision.probation);
        self.probation_ends
    }

    /// The new version serves: writes it down and says so.
    pub(super) async fn finish_upgrade(&mut self) {
        // Before its turn comes the current process is the old one, which may just have been started again.
        if self.upgrade.as_ref().is_none_or(|upgrade| upgrade.candidate.is_some()) {
            return;
        }
        let Some(upgrade) = self.upgrade.take() else { return };
        self.note_on_shelf().await;
        let from = upgrade.old.map_or_else(String::new, |old| format!("from {} ", old.label()));
        let to = upgrade.version.label();
        let probation = self.keeping.supervision.probation.as_secs();
        let detail = format!("{from}to {to}; a death within {probation} s brings the old one back");
        self.shared.change("upgraded", detail, false);
        let _ = upgrade.answer.send(Ok(to));
    }

    /// The candidate died before it had the old one's place.
    fn candidate_died(&mut self, generation: Generation, cause: Cause) {
        let Some(upgrade) = self.upgrade.take() else { return };
        self.kept.died(generation);
        if self.life.state == (State::Stopping { then: Then::HandOver }) {
            self.step(Event::HandOverFailed);
        }
        self.refuse(upgrade, &cause);
    }

    /// The new version had the old one's place, got its state, and died before it was Ready.
    pub(super) async fn upgrade_died(&mut self, version: &Arc<Version>, cause: &Cause) {
        if self.upgrade.as_ref().is_some_and(|upgrade| Arc::ptr_eq(&upgrade.version, version)) {
            if let Some(upgrade) = self.upgrade.take() {
                self.refuse(upgrade, cause);
            }
        }
    }

    fn refuse(&self, upgrade: Upgrade, cause: &Cause) {
        let goes_on = match &upgrade.old {
            Some(old) => format!("{} goes on", old.label()),
            None => "nothing was changed".into(),
        };
        let text = format!(
            "plugin {}: version {} did not come up: {cause}; {goes_on}; `thenodes plugin logs {}` has what it said",
            self.shared.name,
            upgrade.version.label(),
            self.shared.name
        );
        self.shared.change("upgrade_failed", text.clone(), true);
        let _ = upgrade.answer.send(Err(HostError::new(Code::PluginCrashed, text)));
    }

    /// Something else came first.
    pub(super) fn give_up_upgrade(&mut self, why: &str) {
        let Some(upgrade) = self.upgrade.take() else { return };
        if let Some(candidate) = upgrade.candidate {
            candidate.tell(Order::Kill(Cause::Asked));
            self.leaving.push(candidate);
        } else if let Some(old) = upgrade.old {
            // It had the old one's place and was not Ready: what is started next is the old one.
            (self.version, self.previous, self.probation_ends) = (old, None, None);
        }
        let text = format!("plugin {}: not upgraded: {why}", self.shared.name);
        let _ = upgrade.answer.send(Err(HostError::new(Code::Conflict, text)));
    }

    /// Takes the version before this one for the next start.
    pub(super) fn roll_back(&mut self) {
        self.probation_ends = None;
        let Some(previous) = self.previous.take() else { return };
        let new = std::mem::replace(&mut self.version, previous);
        let detail = format!(
            "from {} to {}: the new one died within its probation",
            new.label(),
            self.version.label()
        );
        self.shared.change("rolled_back", detail, true);
        if let Some(shelf) = self.keeping.shelf.clone() {
            let (name, sha256) = (self.shared.name.clone(), self.version.image.sha256.clone());
            let (shared, bad) = (self.shared.clone(), new.image.sha256.clone());
            // Nobody waits for it: the plugin is down.
            tokio::task::spawn_blocking(move || {
                // Going back by hand must not lead to what just died.
                let written = shelf.set_current(&name, &sha256).and_then(|()| shelf.forget(&name, &bad));
                if let Err(why) = written {
                    shared.change("not_written", why.to_string(), true);
                }
            });
        }
    }

    /// Writes down which version runs, so that it is the one after the node's next start.
    async fn note_on_shelf(&self) {
        let Some(shelf) = self.keeping.shelf.clone() else { return };
        let (name, sha256) = (self.shared.name.clone(), self.version.image.sha256.clone());
        let written = tokio::task::spawn_blocking(move || shelf.set_current(&name, &sha256)).await;
        if let Ok(Err(why)) = written {
            self.shared.change("not_written", why.to_string(), true);
        }
    }
}
