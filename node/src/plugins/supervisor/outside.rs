//! What stands around one process while it lives, beside its link: how it is started in its control group, the watchdog's look at it,
//! and the records of what its walls refused.

use super::process::ProcessLife;
use crate::plugins::cgroup::Leaf;
use crate::plugins::denials;
use crate::plugins::process::{self, Order, Started};
use crate::plugins::watchdog::{Limits, Subject, Ticket};
use std::future::Future;
use std::io;
use std::process::ExitStatus;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;

/// Events about refusals that one plugin may cause in a second; its log and its book have them all.
const DENIALS_SHOWN: u32 = 5;

/// So many a second, and no more.
struct Throttle {
    most: u32,
    since: Option<Instant>,
    count: u32,
}

impl Throttle {
    fn may(&mut self) -> bool {
        if self.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            (self.since, self.count) = (Some(Instant::now()), 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= self.most
    }
}

impl ProcessLife {
    /// Carries the warden's records into the book, the log and, not too often, the events.
    /// `ended` hears how the process ended, as soon as the warden knows.
    pub(super) fn follow_denials(
        &self,
        report: Receiver,
        ended: oneshot::Sender<ExitStatus>,
    ) -> impl Future<Output = ()> + 'static {
        let (shared, generation, loading) = (self.shared.clone(), self.generation, self.loading.clone());
        async move {
            let mut shown = Throttle { most: DENIALS_SHOWN, since: None, count: 0 };
            let loading = || loading.load(Ordering::Relaxed);
            let tell = |entry: &denials::Entry| {
                shared.logs.add_own(generation.0, "warn", &format!("denied: {entry}"));
                // The record of an end is told with the end.
                if !entry.killed && shown.may() {
                    shared.change("denied", format!("generation={generation} {entry}"), false);
                }
            };
            let mut ended = Some(ended);
            let ended = |status| {
                if let Some(ended) = ended.take() {
                    let _ = ended.send(status);
                }
            };
            denials::follow(report, generation, &shared.denials, loading, tell, ended).await;
        }
    }

    /// Starts the process: the spare, if there is one, or else a new one; in a control group, as far as there are any.
    pub(super) async fn start(&self, order: &Order<'_>) -> io::Result<(Started, Leaf)> {
        let policy = &self.shared.policy;
        let image = &self.version.image;
        let files = image.library.size + image.needed.iter().map(|(_, file)| file.size).sum::<u64>();
        let terms = &self.version.terms;
        let limit = |leaf: &mut Leaf| leaf.limit(&terms.process, terms.budget.cpu_percent, files);
        self.see_to_the_janitor().await;
        if let Some(mut spare) = policy.spare.as_ref().and_then(|spare| spare.take()) {
            limit(&mut spare.leaf);
            match process::greet(spare, order).await {
                Ok(started) => return Ok(started),
                // It ended just now, perhaps; a new one shows whether anything else is wrong.
                Err(error) => tracing::debug!("the spare runner took no hello: {error}"),
            }
        }
        let mut leaf = policy.watchdog.cgroups().leaf(self.shared.name.as_str());
        limit(&mut leaf);
        process::start(order, leaf).await
    }

    /// There has to be one before there is a group.
    async fn see_to_the_janitor(&self) {
        let policy = &self.shared.policy;
        let (cgroups, runner) = (policy.watchdog.cgroups().clone(), policy.runner.clone());
        if cgroups.is_nothing() {
            return;
        }
        let kept = process::aside(move || cgroups.keep_clean(&runner)).await;
        if let Ok(Err(why)) = kept {
            let detail = format!("{why}; control groups of a killed node stay until the next node starts");
            self.shared.change("no_janitor", detail, true);
        }
    }

    /// Has the process looked at until the ticket is dropped.
    pub(super) fn watch(&self, warden: Option<u32>, leaf: &Arc<Leaf>) -> Option<Ticket> {
        let shared = &self.shared;
        for problem in leaf.problems() {
            let text = format!("control group: {problem}; rlimits and the watchdog hold that limit");
            shared.logs.add_own(self.generation.0, "warn", &text);
        }
        let terms = &self.version.terms;
        let writes = terms.sandbox.paths.iter().filter(|path| path.write);
        Some(shared.policy.watchdog.watch(Subject {
            plugin: shared.name.clone(),
            generation: self.generation,
            warden: warden?,
            places: writes.map(|path| path.path.clone().into()).collect(),
            limits: Limits { process: terms.process, budget: terms.budget },
            leaf: leaf.clone(),
            record: shared.record.clone(),
            denials: shared.denials.clone(),
            logs: shared.logs.clone(),
            counters: shared.counters.clone(),
            observer: shared.observer.clone(),
            commands: shared.orders.clone(),
        }))
    }
}
