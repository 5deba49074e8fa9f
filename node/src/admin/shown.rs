//! Plugins as JSON for operators: what runs, under which terms, behind which walls, and what was counted of it. Texts that came from a
//! plugin were made printable by whoever took them from it.

use crate::plugins::handle::Handle;
use crate::plugins::metrics::{work, Figures};
use crate::plugins::terms::Terms;
use crate::plugins::watchdog::{describe, Limits};
use serde_json::{json, Value};
use std::sync::atomic::Ordering;
use thenodes_ipc::launch::Layer;

pub(super) fn brief(plugin: &Handle) -> Value {
    let status = plugin.status();
    json!({
        "name": plugin.name,
        "state": status.state.word(),
        "desired": status.desired.word(),
        "plugin_version": status.version.label(),
        "level": status.level.as_ref().map(thenodes_ipc::launch::Level::word),
        "missing": status.level.as_ref().map(|level| level.missing().to_vec()).unwrap_or_default(),
        "pid": status.pid,
        "generation": status.generation,
        "starts": status.starts,
        "last_death": status.last_death.as_ref().map(|cause| json!({ "cause": cause.word(), "text": cause.to_string() })),
        "start_ms": status.last_start.map(|took| took.as_millis() as u64),
        "recovered_ms": status.last_recovery.map(|took| took.as_millis() as u64),
    })
}

pub(super) fn sandbox(plugin: &Handle) -> Value {
    let (status, terms) = (plugin.status(), plugin.terms());
    let own = &terms.sandbox;
    json!({
        "version": 1,
        "name": plugin.name.as_str(),
        "level": status.level.as_ref().map(|level| level.word()),
        "layers": status.layers,
        "seccomp": own.seccomp.word(),
        "calls": own.calls,
        "paths": own.paths,
        "tmp_mb": own.temporary / (1024 * 1024),
    })
}

pub(super) fn permissions(terms: &Terms) -> Value {
    json!({
        "version": 1,
        "name": terms.plugin,
        "manifest": terms.manifest.as_ref().map(|manifest| &manifest.path),
        "starts": terms.refusal.is_none(),
        "refusal": terms.refusal,
        "permissions": terms.outcomes,
        "notes": terms.notes.iter().map(|note| json!({ "action": note.action, "detail": note.detail })).collect::<Vec<_>>(),
    })
}

pub(super) fn detailed(plugin: &Handle) -> Value {
    let mut value = brief(plugin);
    let status = plugin.status();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &plugin.counters;
    let (image, terms) = (plugin.image(), plugin.terms());
    value["path"] = json!(image.path);
    value["sha256"] = json!(image.sha256);
    value["needed"] = json!(image.needed.iter().map(|(soname, _)| soname).collect::<Vec<_>>());
    value["limits"] = json!({
        "memory_mb": terms.process.memory / (1024 * 1024),
        "threads": terms.process.threads,
        "fds": terms.process.descriptors,
    });
    value["layers"] = json!(status.layers);
    value["denials"] = json!({ "total": plugin.denials.total(), "last": plugin.denials.all().last.last().map(ToString::to_string) });
    let rlimits = status.layers.iter().any(|layer| layer.layer == Layer::Rlimits && layer.in_force);
    let (held, problems) = plugin.record.enforcement();
    let limits = Limits { process: terms.process, budget: terms.budget };
    value["enforcement"] = describe(held, rlimits, &limits);
    value["enforcement_problems"] = json!(problems);
    value["usage"] = json!(plugin.record.usage().map(|sample| sample.to_json()));
    value["log_lines_dropped"] = json!(plugin.logs.dropped());
    value["id"] = json!(status.registration.as_ref().map(|r| r.id.clone()));
    value["sdk"] = json!(status.registration.as_ref().map(|r| r.sdk.clone()));
    value["prompts"] = json!(status.registration.as_ref().map(|r| r.prompts.clone()).unwrap_or_default());
    let (length, bytes) = plugin.queue.waiting();
    value["queue"] = json!({
        "length": length,
        "bytes": bytes,
        "policy": plugin.queue.overflow().word(),
        "dropped": count(&counters.dropped),
        "lost": count(&counters.lost),
    });
    value["counters"] = json!({
        "answered": count(&counters.answered),
        "failed": count(&counters.failed),
        "panics": count(&counters.panics),
        "timeouts": count(&counters.timeouts),
        "requests": count(&counters.requests),
        "denied": count(&counters.denied),
        "ignored": count(&counters.ignored),
        "dropped": count(&counters.dropped),
        "throttled": count(&counters.throttled),
    });
    value
}

/// What `plugin top` compares from one second to the next.
pub(super) fn top(figures: &Figures, generation: u32) -> Value {
    let (calls, buckets) = work(&figures.methods);
    json!({
        "name": figures.plugin,
        "state": figures.state,
        "generation": generation,
        "calls": calls,
        "buckets": buckets.as_slice(),
        "cpu_ms": figures.usage.map(|(_, cpu)| cpu.as_millis() as u64),
        "memory": figures.usage.map(|(memory, _)| memory),
        "queue": figures.queue.0,
        "restarts": figures.restarts,
    })
}
