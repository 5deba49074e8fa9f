//! What this kernel can enforce, found out by doing it: a runner is started without a plugin, puts up every wall, and says
//! which ones it measured.

use crate::plugins::cgroup::Cgroups;
use crate::plugins::link::{Ended, Greeting};
use crate::plugins::process::{self, find_runner, Order};
use crate::plugins::supervisor::run_as;
use crate::plugins::watchdog::{describe, Limits};
use crate::Config;
use serde_json::{json, Value};
use thenodes_ipc::launch::Layer;
use thenodes_ipc::{Generation, PluginName};

/// Measures. The first value is the report, the second is true if plugins can run at the configured level.
pub async fn examine(config: &Config) -> (Value, bool) {
    match measure(config).await {
        Ok(found) => found,
        Err(error) => (json!({ "version": 1, "level": "refused", "error": error, "layers": [] }), false),
    }
}

async fn measure(config: &Config) -> Result<(Value, bool), String> {
    let runner = find_runner(config.plugins.runner.as_deref())?;
    let order = Order {
        runner: &runner,
        image: None,
        plugin: PluginName::new("doctor").map_err(|e| e.to_string())?,
        generation: Generation(1),
        limits: config.plugins.limits,
        run_as: run_as(config.plugins.uid_base, u32::from(u16::MAX)),
        sandbox: Default::default(),
        transport: Default::default(),
    };
    // What this process could do; the service may have been given more, which `plugin status` says.
    let cgroups = Cgroups::here();
    let mut leaf = cgroups.leaf(order.plugin.as_str());
    leaf.limit(&order.limits, config.plugins.budget.cpu_percent, 0);
    let (started, leaf) =
        process::start(&order, leaf).await.map_err(|e| format!("starting {}: {e}", runner.display()))?;
    let report = Greeting::new(started.stream, None).confined().await.map_err(|ended| match ended {
        Ended::Closed | Ended::Cut => "the runner ended before its report".to_owned(),
        Ended::Because(cause) => cause.to_string(),
    })?;
    let (held, problems) = (leaf.enforcement(), leaf.problems().to_vec());
    drop(started.child);
    leaf.end().await;
    let limits = Limits { process: config.plugins.limits, budget: config.plugins.budget };
    let rlimits = report.layers.iter().any(|layer| layer.layer == Layer::Rlimits && layer.in_force);
    let level = report.level();
    let good = config.plugins.required.accepts(&level);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let value = json!({
        "version": 1,
        "kernel": kernel.trim(),
        "runner": runner,
        "level": level.word(),
        "required": config.plugins.required.word(),
        "layers": report.layers,
        "enforcement": describe(held, rlimits, &limits),
        "problems": problems,
    });
    Ok((value, good))
}
