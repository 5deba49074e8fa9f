//! One attempt: a real runner is started with the hostile library set to one probe in one phase, driven by the node's own code
//! through start-up, `load` and a message, and watched until it has said what came of it or has ended.

use super::{Attempt, Phase, Verdict};
use hostile::control::Targets;
use hostile::probes::Probe;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;
use thenodes::host::{Host, HostError, NodeInfo, Notice, Request, Response};
use thenodes::network::message::{Message, MessageType};
use thenodes::realms::RealmInfo;
use thenodes_ipc::launch::{ProcessLimits, Without};
use thenodes_ipc::{pack, Code, Generation};
use thenodes_node::config::Budget;
use thenodes_node::plugins::cgroup::Leaf;
use thenodes_node::plugins::denials::{self, DenialBook, Denials};
use thenodes_node::plugins::image::{Image, Sealed};
use thenodes_node::plugins::link::{Ended, Greeting};
use thenodes_node::plugins::process::{self, Order, Sandbox, Started};
use thenodes_node::plugins::supervisor::run_as;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::{mpsc, Semaphore};
use tokio::task::JoinSet;

/// How long an attempt may take. Long, because machines are slow; what is silent for so long proves nothing.
const PATIENCE: Duration = Duration::from_secs(20);
/// Attempts at the same time.
pub(super) const AT_ONCE: usize = 4;
/// Bytes of a plugin's line that are looked at.
const MAX_LINE: usize = 4096;

/// What all attempts share.
pub struct World {
    runner: PathBuf,
    library: Vec<u8>,
    switch_at: usize,
    /// Read once, with the libraries it needs; each attempt replaces the library's bytes.
    template: Image,
    count: AtomicU32,
    without: Option<Without>,
    patience: Duration,
}

const MARKER: &[u8] = b"hostile-switch=none:none";
const SWITCH: usize = 256;

impl World {
    /// With this runner and this hostile library. Taking something away needs a runner that is built for it.
    pub fn new(
        runner: PathBuf,
        library: &std::path::Path,
        without: Option<Without>,
    ) -> Result<World, String> {
        let bytes = std::fs::read(library).map_err(|e| format!("{}: {e}", library.display()))?;
        let at = bytes.windows(MARKER.len()).position(|window| window == MARKER);
        let provided =
            thenodes_node::plugins::image::libraries_of_program(&runner).map_err(|e| e.to_string())?;
        let template = Image::read(library, &provided).map_err(|e| e.to_string())?;
        Ok(World {
            switch_at: at.ok_or("the hostile library has no switch")?,
            library: bytes,
            template,
            runner,
            count: AtomicU32::new(0),
            without,
            patience: PATIENCE,
        })
    }

    /// The same with less patience, where silence is an answer.
    #[must_use]
    pub fn impatient(self, patience: Duration) -> World {
        World { patience, ..self }
    }

    fn image(&self, switch: &str) -> Result<Image, String> {
        let mut bytes = self.library.clone();
        let place = bytes.get_mut(self.switch_at..self.switch_at + SWITCH).ok_or("the switch is cut off")?;
        let text = format!("hostile-switch={switch}");
        if text.len() > SWITCH {
            return Err(format!("the switch {switch:?} is too long"));
        }
        place.fill(b' ');
        place[..text.len()].copy_from_slice(text.as_bytes());
        let again = |file: &Sealed| file.fd.try_clone().map(|fd| Sealed { fd, size: file.size });
        let needed = self.template.needed.iter().map(|(soname, file)| Ok((soname.clone(), again(file)?)));
        let needed: std::io::Result<_> = needed.collect();
        Ok(Image {
            name: self.template.name.clone(),
            sha256: String::new(),
            library: Sealed::new("hostile.so", &bytes).map_err(|e| e.to_string())?,
            needed: needed.map_err(|e| e.to_string())?,
            path: self.template.path.clone(),
        })
    }

    /// Makes every attempt, some at the same time: they wait more than they work.
    pub async fn attempts(
        self: &Arc<Self>,
        probes: &[&'static Probe],
        phases: &[Phase],
        targets: &Targets,
    ) -> Vec<Attempt> {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let mut attempts: JoinSet<Attempt> = JoinSet::new();
        for probe in probes {
            for phase in phases {
                let (world, room, probe, phase) = (self.clone(), room.clone(), *probe, *phase);
                let argument = targets.argument(probe.target);
                attempts.spawn(async move {
                    let _room = room.acquire_owned().await;
                    world.attempt(probe, &argument, phase).await
                });
            }
        }
        attempts.join_all().await
    }

    /// Makes one attempt.
    pub async fn attempt(&self, probe: &'static Probe, argument: &str, phase: Phase) -> Attempt {
        let (verdict, denials) = self.sin(&format!("{} {argument}", probe.name), phase).await;
        let record = denials.last.last().map(ToString::to_string);
        Attempt { probe: probe.name, phase, verdict, record }
    }

    /// Has the plugin do something in a phase, and says what came of it and what was refused meanwhile.
    pub async fn sin(&self, sin: &str, phase: Phase) -> (Verdict, Denials) {
        let book = Arc::new(DenialBook::default());
        let verdict =
            match tokio::time::timeout(self.patience, self.try_it(sin.trim_end(), phase, &book)).await {
                Ok(Ok(verdict)) => verdict,
                Ok(Err(error)) => Verdict::Silent(error),
                Err(_) => Verdict::Silent(format!("nothing within {:?}", self.patience)),
            };
        (verdict, book.all())
    }

    async fn try_it(&self, sin: &str, phase: Phase, book: &Arc<DenialBook>) -> Result<Verdict, String> {
        let image = self.image(&format!("{}:{sin}", phase.word()))?;
        let slot = self.count.fetch_add(1, Ordering::Relaxed) % 50_000;
        let generation = Generation(1);
        let order = Order {
            runner: &self.runner,
            image: Some(&image),
            plugin: image.name.clone(),
            generation,
            limits: ProcessLimits {
                memory: 128 << 20,
                threads: 16,
                descriptors: 64,
                cpu_seconds: None,
                file_size: 0,
            },
            run_as: run_as(2_000_000, slot),
            sandbox: Sandbox { without: self.without.clone(), ..Sandbox::default() },
            transport: Default::default(),
        };
        let started = process::start(&order, Leaf::default()).await;
        let (Started { mut child, stream, ring, stdout, stderr, report }, _leaf) =
            started.map_err(|e| format!("the runner did not start: {e}"))?;
        let (said, mut lines) = mpsc::channel(64);
        tokio::spawn(listen(stdout, said.clone()));
        tokio::spawn(listen(stderr, said));
        let (records, to_end) = (book.clone(), tokio::sync::oneshot::channel::<()>());
        tokio::spawn(async move {
            denials::follow(report, generation, &records, || false, |_| {}, |_| {}).await;
            drop(to_end.0);
        });

        let driven = drive(Greeting::new(stream, ring), generation, phase);
        tokio::pin!(driven);
        let mut verdict = None;
        let mut link = None;
        // Now and then the whole tree is stopped for a moment: waits that the kernel has to resume are part of every life.
        let mut pulse = tokio::time::interval(Duration::from_millis(20));
        let pulsed = self.without.as_ref().is_some_and(|without| !without.calls.is_empty());
        loop {
            tokio::select! {
                _ = pulse.tick(), if pulsed => stop_for_a_moment(child.id()),
                line = lines.recv() => match line {
                    Some(line) => {
                        if let Some(what) = line.split("GOT THROUGH").nth(1) {
                            verdict = Some(Verdict::Through(what.trim_start_matches(": ").to_owned()));
                            break;
                        }
                        if let Some(what) = line.strip_prefix("denied: ") {
                            verdict = Some(Verdict::Refused(what.to_owned()));
                            break;
                        }
                    }
                    None => {
                        // The process has ended; what it said to the node before that may still be on its way.
                        if link.is_none() {
                            let told = tokio::time::timeout(Duration::from_secs(2), &mut driven).await;
                            if let Ok(Err(Ended::Because(cause))) = told {
                                verdict = Some(Verdict::Ended(cause.to_string()));
                            }
                        }
                        break;
                    }
                },
                outcome = &mut driven, if link.is_none() => match outcome {
                    Ok(alive) => link = Some(alive),
                    Err(Ended::Because(cause)) => {
                        verdict = Some(Verdict::Ended(cause.to_string()));
                        break;
                    }
                    Err(Ended::Closed | Ended::Cut) => link = Some(None),
                },
            }
        }
        drop(link);
        let status = match &verdict {
            // It has said what we wanted to know, and would wait for more.
            Some(_) => {
                let _ = child.kill().await;
                None
            }
            None => child.wait().await.ok(),
        };
        // Records end with the warden.
        let _ = to_end.1.await;
        Ok(match (verdict, status) {
            (Some(verdict), _) => verdict,
            (None, Some(status)) if status.signal() == Some(nix::sys::signal::Signal::SIGSYS as i32) => {
                Verdict::Killed
            }
            (None, Some(status)) => Verdict::Ended(status.to_string()),
            (None, None) => Verdict::Silent("it said nothing and cannot be waited for".into()),
        })
    }
}

/// Stops the descendants of a process and lets them go on.
fn stop_for_a_moment(warden: Option<u32>) {
    use nix::sys::signal::{kill, Signal};
    let children =
        |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for stub in warden.map(children).unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok())
    {
        for runner in children(stub).split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let runner = nix::unistd::Pid::from_raw(runner);
            let _ = kill(runner, Signal::SIGSTOP);
            let _ = kill(runner, Signal::SIGCONT);
        }
    }
}

/// Start-up, `load`, and a message where the phase wants one; keeps the link open afterwards.
async fn drive(
    mut greeting: Greeting,
    generation: Generation,
    phase: Phase,
) -> Result<Option<thenodes_node::plugins::link::Link>, Ended> {
    // Whatever level it is: taking walls away is what some runs are about.
    greeting.confined().await?;
    greeting.registered().await?;
    let link = greeting.run(generation, Arc::new(Nobody), Arc::default(), (&Budget::default()).into());
    let info = NodeInfo {
        plugin: "hostile".into(),
        node_id: "attacked".into(),
        realm: RealmInfo::new("attack", "1"),
        node_type: "daemon".into(),
        session_id: String::new(),
    };
    let caller = link.caller().clone();
    let body = pack::encode(&info).unwrap_or_default();
    let _ = caller.call("load", body, PATIENCE).await;
    if phase == Phase::Message {
        let message = Message::new("a", "*", MessageType::Text("go".into()), None, None);
        let body = pack::encode(&message).unwrap_or_default();
        let _ = caller.call("message", body, PATIENCE).await;
    }
    Ok(Some(link))
}

async fn listen(pipe: impl AsyncRead + Unpin, said: mpsc::Sender<String>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(mut line)) = lines.next_line().await {
        let end = (0..=MAX_LINE.min(line.len())).rev().find(|at| line.is_char_boundary(*at));
        line.truncate(end.unwrap_or(0));
        if said.send(line).await.is_err() {
            return;
        }
    }
}

/// A node that grants nothing.
struct Nobody;

#[async_trait::async_trait]
impl Host for Nobody {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        Err(HostError::new(Code::PermissionDenied, request.method()))
    }

    fn notify(&self, _: Notice) {}
}
