//! Kept frames on disk, if the operator wants them to survive a restart: one file, written anew when something changed, at most once
//! a second and at an orderly end. Whatever kills the node costs what came in the last second. The file is this node's own; it is
//! read within bounds all the same, and set aside if it cannot be.

use super::{unix_now, Frame, Qos, Relay, Wants};
use crate::network::Network;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use thenodes::events::model::LogLevel;
use thenodes_ipc::pack;

/// Version of the file.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    frames: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    origin: String,
    from: String,
    target: String,
    sequence: Option<u64>,
    #[serde(with = "serde_bytes")]
    line: Vec<u8>,
    expires: u64,
    qos: u8,
}

fn number(qos: Qos) -> u8 {
    match qos {
        Qos::Plain => 0,
        Qos::LowLatency => 1,
        Qos::HighThroughput => 2,
        Qos::Bulk => 3,
        Qos::Reliable => 4,
    }
}

fn qos(number: u8) -> Qos {
    match number {
        1 => Qos::LowLatency,
        2 => Qos::HighThroughput,
        3 => Qos::Bulk,
        4 => Qos::Reliable,
        _ => Qos::Plain,
    }
}

/// Writes the frames, whole or not at all.
pub fn save(path: &Path, frames: &[Arc<Frame>]) -> io::Result<()> {
    let rows = frames.iter().map(|frame| Row {
        origin: frame.origin.to_string(),
        from: frame.from.to_string(),
        target: frame.target.to_string(),
        sequence: frame.sequence,
        line: frame.line.to_vec(),
        expires: frame.expires,
        qos: number(frame.wants.qos),
    });
    let bytes = pack::encode(&File { version: VERSION, frames: rows.collect() }).map_err(io::Error::other)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?; // mode 0600
    file.write_all(&bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Reads the frames of an earlier run; those that are too old by now are left out.
pub fn load(path: &Path, most: usize, now: u64) -> io::Result<Vec<Frame>> {
    let size = match std::fs::metadata(path) {
        Ok(about) => about.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // What is kept costs more in memory than in the file.
    if size > most as u64 * 2 {
        return Err(io::Error::other(format!("{size} bytes; at most {} are read", most * 2)));
    }
    let file: File = pack::decode(&std::fs::read(path)?).map_err(io::Error::other)?;
    if file.version != VERSION {
        return Err(io::Error::other(format!("version {}; this release reads {VERSION}", file.version)));
    }
    let fresh = file.frames.into_iter().filter(|row| row.expires > now);
    let frame = |row: Row| Frame {
        origin: row.origin.into(),
        from: row.from.into(),
        target: row.target.into(),
        sequence: row.sequence,
        line: row.line.into_boxed_slice(),
        expires: row.expires,
        wants: Wants { qos: qos(row.qos), store: true },
    };
    Ok(fresh.map(frame).collect())
}

/// Takes up what an earlier run kept. A file that cannot be read is set aside and reported.
pub async fn restore(network: &Network) {
    let Some(path) = network.relay.config.journal.clone().filter(|_| network.relay.config.enabled) else {
        return;
    };
    let most = network.relay.config.bytes;
    let shown = path.display().to_string();
    let aside = path.with_extension("unreadable");
    let loaded = tokio::task::spawn_blocking(move || {
        load(&path, most, unix_now()).inspect_err(|_| drop(std::fs::rename(&path, aside)))
    });
    match loaded.await.map_err(io::Error::other).and_then(|loaded| loaded) {
        Ok(frames) if frames.is_empty() => {}
        Ok(frames) => {
            let detail = format!("{} frames from {shown}", frames.len());
            network.events.network(LogLevel::Info, "relay_queue_restored", None, detail);
            network.relay.restore(frames);
        }
        Err(error) => {
            let detail = format!("{shown}: {error}; set aside as *.unreadable");
            network.events.network(LogLevel::Error, "relay_queue_unreadable", None, detail);
        }
    }
}

/// Writes the frames down if they changed and shall survive a restart.
pub async fn write(network: &Network) {
    let relay: &Relay = &network.relay;
    let Some(path) = relay.config.journal.clone().filter(|_| relay.config.enabled) else { return };
    let Some(frames) = relay.changed_frames() else { return };
    let shown = path.display().to_string();
    let saved = tokio::task::spawn_blocking(move || save(&path, &frames)).await;
    if let Err(error) = saved.map_err(io::Error::other).and_then(|saved| saved) {
        relay.changed.store(true, std::sync::atomic::Ordering::Release);
        let detail = format!("{shown}: {error}");
        network.events.network(LogLevel::Error, "relay_queue_not_saved", None, detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_file_and_old_ones_do_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/queue.bin");
        let frame = |n: u64| {
            Arc::new(Frame {
                origin: "o".into(),
                from: "o".into(),
                target: "t".into(),
                sequence: Some(n),
                line: vec![b'x'; 10].into(),
                expires: n,
                wants: Wants { qos: Qos::Reliable, store: true },
            })
        };
        assert!(load(&path, 1 << 20, 0).expect("no file is no frames").is_empty());
        save(&path, &[frame(5), frame(9)]).expect("saved");
        let loaded = load(&path, 1 << 20, 5).expect("loaded");
        assert_eq!(loaded, [Arc::into_inner(frame(9)).expect("the only one")]);
        std::fs::write(&path, b"garbage").expect("written");
        assert!(load(&path, 1 << 20, 0).is_err());
        std::fs::write(&path, vec![0; 1 << 12]).expect("written");
        assert!(load(&path, 1 << 10, 0).is_err_and(|error| error.to_string().contains("at most")));
    }
}
