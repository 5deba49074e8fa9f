//! What the processes of one plugin tell, and what the supervisor makes of it: each piece of news becomes an event of the life, a line
//! for the operator, or the end of something. News come from our own tasks; the texts in them are the plugin's and were made printable.

use super::probe::chance;
use super::process::{News, Running};
use super::{Supervisor, DEATHS_KEPT};
use crate::plugins::handle::Death;
use crate::plugins::lifecycle::{Cause, Event, State, Then};
use crate::plugins::way::Door;
use crate::plugins::why;
use std::time::{Instant, SystemTime};
use thenodes_ipc::Generation;

impl Supervisor {
    pub(super) async fn hear(&mut self, generation: Generation, news: News) {
        let is = |running: &Running| running.generation == generation;
        if self.current.as_ref().is_some_and(is) {
            return self.hear_current(generation, news).await;
        }
        if self.upgrade.as_ref().and_then(|upgrade| upgrade.candidate.as_ref()).is_some_and(is) {
            return self.hear_candidate(generation, news).await;
        }
        if let News::Ended(cause) = news {
            self.leaving.retain(|running| running.generation != generation);
            self.shared.change(
                "left",
                format!("generation {generation} ended after its calls: {cause}"),
                false,
            );
        }
        // Whatever else one says whose place was taken: what it leaves is older than what its successor has done since.
    }

    async fn hear_current(&mut self, generation: Generation, news: News) {
        let Some(current) = &mut self.current else { return };
        current.note(&news);
        match news {
            News::Started(_) | News::Walls(..) => self.show_process(),
            News::Registered(_) => {
                self.show_process();
                self.step(Event::Registered);
            }
            News::WantsState(give) => {
                let _ = give.send(self.kept.give(generation, &self.version.image.sha256));
            }
            News::Loaded(way) => {
                self.kept.taken();
                // First the way in, then the word that it is open: whoever sees Ready may call.
                if self.life.state.starts() {
                    self.door.send_replace(Door::Open(way));
                }
                self.step(Event::Loaded);
                self.tell_ready();
                self.finish_upgrade().await;
            }
            News::Healthy => {
                self.status.send_modify(|status| status.missed = None);
                self.step(Event::Healthy);
            }
            News::Missed(why) => {
                self.shared.logs.add_own(generation.0, "warn", &format!("health: {why}"));
                self.status.send_modify(|status| status.missed = Some(why));
                self.step(Event::Missed);
            }
            News::Left(state) => {
                self.kept.put(state);
                if self.life.state == (State::Stopping { then: Then::HandOver }) {
                    self.hand_over().await;
                }
            }
            News::Died(cause) => self.name_death(generation, &cause),
            News::Ended(cause) => self.died(generation, cause).await,
        }
    }

    pub(super) fn tell_ready(&mut self) {
        let Some(current) = &self.current else { return };
        let (took, recovered) = (current.begun.elapsed(), self.died_at.take().map(|at| at.elapsed()));
        let level = current.walls.as_ref().map_or_else(String::new, |(level, _)| level.to_string());
        let generation = current.generation;
        self.status.send_modify(|status| {
            status.missed = None;
            status.last_start = Some(took);
            if recovered.is_some() {
                status.last_recovery = recovered;
            }
        });
        let mut detail = format!("generation={generation} level={level} start_ms={}", took.as_millis());
        if let Some(recovered) = recovered {
            detail.push_str(&format!(" recovered_ms={}", recovered.as_millis()));
        }
        self.shared.change("ready", detail, false);
    }

    /// Says why a process has ended, once, as soon as that is known. An end that was asked for is no death.
    fn name_death(&mut self, generation: Generation, cause: &Cause) {
        if !matches!(*self.door.borrow(), Door::Held) {
            self.door.send_replace(Door::Closed);
        }
        if matches!(self.life.state, State::Stopping { .. }) || self.named == Some(generation) {
            return;
        }
        self.named = Some(generation);
        self.died_at = Some(Instant::now());
        self.shared.counters.deaths.count(cause);
        self.shared.logs.add_own(generation.0, "error", &format!("died: {cause}"));
        let version =
            self.current.as_ref().map_or_else(|| self.version.label(), |current| current.version.label());
        self.status.send_modify(|status| {
            status.last_death = Some(cause.clone());
            status.deaths.push_back(Death {
                at: SystemTime::now(),
                generation,
                version,
                cause: cause.clone(),
            });
            while status.deaths.len() > DEATHS_KEPT {
                status.deaths.pop_front();
            }
        });
    }

    async fn died(&mut self, generation: Generation, cause: Cause) {
        let hand_over = self.life.state == (State::Stopping { then: Then::HandOver });
        self.name_death(generation, &cause);
        self.kept.died(generation);
        let version = self.current.take().map_or_else(|| self.version.clone(), |running| running.version);
        let asked = matches!(self.life.state, State::Stopping { .. });
        let cause = if asked { Cause::Asked } else { cause };
        if asked {
            self.shared.change("stopped", format!("generation {generation} ended"), false);
        }
        self.status.send_modify(|status| status.pid = None);
        let rolls_back = !asked && self.life.in_probation(Instant::now());
        self.step(Event::Died { cause: cause.clone(), jitter: chance() });
        if hand_over {
            self.answer_candidate_without_state();
        }
        if asked {
            return;
        }
        self.upgrade_died(&version, &cause).await;
        let next = if rolls_back {
            format!("within its probation: back to {}", self.version.label())
        } else {
            let status = self.status.borrow();
            why::what_follows(&self.shared.name, &status, &self.shared.logs, Instant::now())
        };
        let action = if matches!(self.life.state, State::Failed { .. }) { "failed" } else { "died" };
        let detail = format!(
            "generation={generation} version={} cause={} {cause}; {next}",
            version.label(),
            cause.word()
        );
        self.shared.change(action, detail, true);
    }
}
