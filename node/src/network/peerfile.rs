//! The peer store on disk: the JSON of the documents, sorted by the last success, written whole or not at all, by one task. The file
//! may have been written by another release or edited by hand; what cannot be read is set aside and reported, never silently lost.

use super::Network;
use crate::config::Persistence;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thenodes::events::model::LogLevel;
use thenodes::network::peer_store::PeerRecord;
use thenodes::network::PeerSource;
use tokio::time::MissedTickBehavior;

/// Most bytes of the file for one entry.
const ENTRY: u64 = 16 * 1024;

/// Reads the file; entries whose last success is too long ago are left out, and so is what is beyond the bound.
pub fn load(path: &Path, config: &Persistence, now: u64) -> io::Result<Vec<PeerRecord>> {
    let size = match std::fs::metadata(path) {
        Ok(about) => about.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let most = ENTRY * config.max_entries.max(64) as u64;
    if size > most {
        return Err(io::Error::other(format!("{size} bytes; at most {most} are read")));
    }
    let records: Vec<PeerRecord> = serde_json::from_slice(&std::fs::read(path)?)?;
    let oldest = now.saturating_sub(config.ttl.as_secs());
    let fresh = |record: &PeerRecord| record.last_success_epoch.is_none_or(|at| at >= oldest);
    Ok(records.into_iter().filter(fresh).take(config.max_entries).collect())
}

/// Writes the file, whole or not at all.
pub fn save(path: &Path, records: &[PeerRecord]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?; // mode 0600
    serde_json::to_writer_pretty(&mut file, records)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

/// Takes up what an earlier run knew.
pub async fn restore(network: &Network) {
    let config = network.net.persistence.clone();
    let Some(path) = config.path.clone() else { return };
    let (file, now) = (path.clone(), unix_now());
    let loaded = tokio::task::spawn_blocking(move || {
        load(&file, &config, now).map_err(|error| {
            let aside = file.with_extension("json.unreadable");
            let kept = match std::fs::rename(&file, &aside) {
                Ok(()) => format!("set aside as {}", aside.display()),
                Err(error) => format!("and cannot be set aside: {error}"),
            };
            io::Error::other(format!("{error}; {kept}"))
        })
    });
    match loaded.await.map_err(io::Error::other).and_then(|loaded| loaded) {
        Ok(records) => {
            if !records.is_empty() {
                let detail = format!("{} entries from {}", records.len(), path.display());
                network.events.network(LogLevel::Info, "peer_store_restored", None, detail);
            }
            // Who was a bootstrap node then may be none now; one that still is says so when it is dialed.
            let known = records.into_iter().map(|record| match record.source {
                PeerSource::Bootstrap => PeerRecord { source: PeerSource::Handshake, ..record },
                _ => record,
            });
            network.store.restore(known);
        }
        Err(error) => {
            let detail = format!("{}: {error}", path.display());
            network.events.network(LogLevel::Error, "peer_store_unreadable", None, detail);
        }
    }
}

/// Forgets what is too old.
fn expire(network: &Network) {
    let connected = network.peers.list().into_iter().map(|peer| peer.node_id).collect();
    network.store.expire(unix_now(), network.net.persistence.ttl.as_secs(), &connected);
}

/// Writes what is known now.
pub async fn write(network: &Network) {
    expire(network);
    let Some(path) = network.net.persistence.path.clone() else { return };
    let records = network.store.records().await;
    let shown = path.display().to_string();
    let saved = tokio::task::spawn_blocking(move || save(&path, &records)).await;
    if let Err(error) = saved.map_err(io::Error::other).and_then(|saved| saved) {
        let detail = format!("{shown}: {error}");
        network.events.network(LogLevel::Error, "peer_store_not_saved", None, detail);
    }
}

/// Writes now and then, until the network ends, or only forgets what is too old where nothing is written; the end writes once more.
pub async fn keep(network: Arc<Network>) {
    let every = network.net.persistence.every.max(Duration::from_secs(1));
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        write(&network).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(max_entries: usize) -> Persistence {
        Persistence { path: None, max_entries, ttl: Duration::from_secs(100), every: Duration::from_secs(1) }
    }

    fn record(port: u16, success: Option<u64>) -> PeerRecord {
        PeerRecord {
            addr: ([10, 0, 0, 1], port).into(),
            source: PeerSource::Handshake,
            failures: 0,
            last_success_epoch: success,
            node_id: Some("n".into()),
            capabilities: Some(vec!["relay".into()]),
        }
    }

    #[test]
    fn the_file_of_the_documents_is_read_with_all_that_stands_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("peers.json");
        let documents = r#"[ { "addr": "203.0.113.10:7447", "source": "Handshake", "failures": 0, "last_success_epoch": 1733430000, "node_id": "node-abc", "capabilities": ["relay", "kv"] } ]"#;
        std::fs::write(&path, documents).expect("written");
        let records = load(&path, &config(8), 1_733_430_050).expect("read");
        assert_eq!(records[0].node_id.as_deref(), Some("node-abc"));
        assert_eq!(records[0].capabilities.as_deref().map(<[String]>::len), Some(2));
        save(&path, &records).expect("saved");
        assert_eq!(load(&path, &config(8), 1_733_430_050).expect("read again"), records);
        assert!(load(&path, &config(8), 1_733_430_101).expect("read").is_empty(), "too old");
    }

    #[test]
    fn age_and_bound_hold_and_garbage_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/peers.json");
        assert!(load(&path, &config(8), 0).expect("no file is nothing known").is_empty());
        save(&path, &[record(1, Some(500)), record(2, Some(399)), record(3, None), record(4, Some(450))])
            .expect("saved");
        let ports: Vec<u16> =
            load(&path, &config(2), 500).expect("read").iter().map(|record| record.addr.port()).collect();
        assert_eq!(ports, [1, 3]);
        std::fs::write(&path, b"[{]").expect("written");
        assert!(load(&path, &config(2), 500).is_err());
    }
}
