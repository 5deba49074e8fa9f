//! The walls, one file each, and what was found while they were put up. A wall that fails does not stop the others: the
//! report names all that is missing, and the node decides. Nothing is opened before it did.

pub(crate) mod landlock;
pub(crate) mod namespaces;
pub(crate) mod privileges;
pub(crate) mod rlimits;
pub(crate) mod root;
pub(crate) mod seccomp;
pub(crate) mod state;
pub(crate) mod syscalls;

use crate::sys::{self, Handover};
use seccomp::Filters;
use std::os::fd::{AsFd, OwnedFd};
use thenodes_ipc::launch::{Layer, LayerReport, NodeHello};

/// True if a test wants this wall left out. Only a runner built for such tests ever gets so far, see `main`.
pub(crate) fn omitted(hello: &NodeHello, layer: Layer) -> bool {
    hello.without.as_ref().is_some_and(|without| without.layers.contains(&layer))
}

/// Puts the system call filter up: from here on the broker answers what the allow-list does not contain.
pub(crate) fn filter(hello: &NodeHello, walls: &mut Walls) -> Result<Filters, String> {
    let handover = Handover::prepare(state::CONFIDENCE_FD);
    let filters = Filters::compile(hello, &handover)?;
    let put_up =
        filters.first().and_then(|listener| hand_over(handover, listener)).and_then(|()| filters.seal());
    walls.step(Layer::Seccomp, "the filter", put_up);
    if omitted(hello, Layer::Seccomp) {
        walls.hole(Layer::Seccomp, "left out for a test");
    }
    Ok(filters)
}

/// Gives the listener to the broker, waits until it has it, and closes the way there.
fn hand_over(handover: Handover, listener: OwnedFd) -> Result<(), String> {
    handover.send(listener.as_fd()).map_err(|e| format!("handing the listener to the broker: {e}"))?;
    drop(listener);
    let confidence = sys::adopt(state::CONFIDENCE_FD).ok_or("the way to the broker was lost")?;
    let mut word = [0];
    match nix::unistd::read(&confidence, &mut word) {
        Ok(1) => Ok(()),
        Ok(_) => Err("the broker has gone".into()),
        Err(e) => Err(format!("waiting for the broker: {e}")),
    }
}

/// What is known of each wall so far. A wall counts only if somebody measured it and nobody found a hole.
#[derive(Debug, Default)]
pub(crate) struct Walls {
    holes: Vec<(Layer, String)>,
    measured: Vec<(Layer, String)>,
}

impl Walls {
    /// A step failed, or a test that had to fail went through.
    pub(crate) fn hole(&mut self, layer: Layer, what: impl Into<String>) {
        self.holes.push((layer, what.into()));
    }

    /// A test of what must fail has failed.
    pub(crate) fn measured(&mut self, layer: Layer, what: impl Into<String>) {
        self.measured.push((layer, what.into()));
    }

    /// True if no hole was found in this wall yet.
    pub(crate) fn whole_so_far(&self, layer: Layer) -> bool {
        !self.holes.iter().any(|(of, _)| *of == layer)
    }

    /// Records a step's outcome: a failure is a hole, a success says nothing yet.
    pub(crate) fn step<T, E: std::fmt::Display>(
        &mut self,
        layer: Layer,
        what: &str,
        done: Result<T, E>,
    ) -> Option<T> {
        done.map_err(|error| self.hole(layer, format!("{what}: {error}"))).ok()
    }

    /// Records a test: `held` means that what must fail has failed.
    pub(crate) fn test(&mut self, layer: Layer, what: &str, held: bool) {
        if held {
            self.measured(layer, what);
        } else {
            self.hole(layer, format!("not held: {what}"));
        }
    }

    /// One line per wall.
    pub(crate) fn report(&self) -> Vec<LayerReport> {
        let texts = |list: &[(Layer, String)], layer| -> Vec<String> {
            list.iter().filter(|(l, _)| *l == layer).map(|(_, text)| text.clone()).collect()
        };
        Layer::ALL
            .into_iter()
            .map(|layer| {
                let (holes, measured) = (texts(&self.holes, layer), texts(&self.measured, layer));
                let in_force = holes.is_empty() && !measured.is_empty();
                let detail = match (holes.is_empty(), measured.is_empty()) {
                    (false, _) => holes.join("; "),
                    (true, false) => measured.join("; "),
                    (true, true) => "not measured".into(),
                };
                LayerReport { layer, in_force, detail }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_stands_only_if_it_was_measured_and_has_no_hole() {
        let mut walls = Walls::default();
        assert!(walls.report().iter().all(|wall| !wall.in_force));
        walls.test(Layer::Root, "open /etc/passwd is ENOENT", true);
        walls.test(Layer::Landlock, "open / is EACCES", true);
        walls.step(Layer::Landlock, "restrict", Err::<(), _>("EINVAL"));
        let report = walls.report();
        let stands = |layer| report.iter().any(|wall| wall.layer == layer && wall.in_force);
        assert!(stands(Layer::Root) && !stands(Layer::Landlock) && !stands(Layer::Seccomp));
    }
}
