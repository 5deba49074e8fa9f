//! The admin socket itself: one JSON object a line in, one out, for a bounded number of local clients. A client may say anything, or
//! nothing: lines are cut at a length, silence at a time, and who only waits for lines of a log leaves room for orders.

use super::question::MAX_QUESTION;
use super::{Question, View};
use interprocess::local_socket::tokio::{prelude::*, Listener, Stream};
use interprocess::local_socket::{prelude::*, GenericFilePath, ListenerOptions, Stream as BlockingStream};
use interprocess::os::unix::local_socket::ListenerOptionsExt;
use serde_json::{json, Value};
use std::io::{BufRead, BufReader as BlockingReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thenodes::host::HostError;
use thenodes_ipc::Code;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// Connections at once.
const MAX_CLIENTS: usize = 16;
/// Of these, clients that wait for lines of a log.
const MAX_WAITING: usize = 8;
/// A client says something within this time or is hung up on.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer that is read, bytes.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

/// The listening side.
pub struct Server {
    task: JoinHandle<()>,
    path: PathBuf,
}

impl Server {
    /// Opens the socket, mode 0660. A socket that a dead node left is replaced; a living node's is not.
    pub async fn start(path: &Path, view: View) -> Result<Server, String> {
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        let name = path.to_fs_name::<GenericFilePath>().map_err(failed)?;
        if path.exists() {
            if Stream::connect(name.borrow()).await.is_ok() {
                return Err(format!(
                    "{}: another node answers there; give this one its own [node] state_dir",
                    path.display()
                ));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = ListenerOptions::new().name(name).mode(0o660).create_tokio().map_err(failed)?;
        Ok(Server { task: tokio::spawn(serve(listener, view)), path: path.into() })
    }

    /// Closes the socket and removes its file.
    pub async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(listener: Listener, view: View) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    let mut clients = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = loop {
            tokio::select! {
                accepted = listener.accept() => break accepted,
                // One that ended keeps its memory until it is taken from here.
                Some(_) = clients.join_next(), if !clients.is_empty() => {}
            }
        };
        match accepted {
            Ok(stream) => {
                let (view, waiting) = (view.clone(), waiting.clone());
                clients.spawn(async move {
                    let _place = place;
                    client(stream, view, &waiting).await;
                });
            }
            Err(error) => {
                tracing::error!("admin socket: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn client(stream: Stream, view: View, waiting: &Semaphore) {
    let who = match stream.peer_creds() {
        Ok(creds) => format!("uid {}", creds.euid().map_or_else(|| "?".into(), |uid| uid.to_string())),
        Err(_) => "uid ?".into(),
    };
    let mut reader = BufReader::new(&stream);
    loop {
        let mut line = Vec::new();
        let read = timeout(PATIENCE, (&mut reader).take(MAX_QUESTION).read_until(b'\n', &mut line)).await;
        if !matches!(read, Ok(Ok(1..))) {
            return;
        }
        let answer = match serde_json::from_slice::<Question>(&line) {
            Ok(question) if question.waits() => match waiting.try_acquire() {
                // Who is gone waits for nothing.
                Ok(_place) => tokio::select! {
                    answer = view.answer(question, &who) => answer,
                    () = gone(&mut reader) => return,
                },
                Err(_) => {
                    let text = format!("{MAX_WAITING} clients follow logs already; end one of them");
                    Err(HostError::new(Code::ResourceExhausted, text))
                }
            },
            Ok(question) => view.answer(question, &who).await,
            Err(error) => Err(HostError::new(Code::InvalidInput, format!("no question: {error}"))),
        };
        let value = answer.unwrap_or_else(|error| {
            json!({ "version": 1, "error": { "code": error.code.as_str(), "message": error.message } })
        });
        let mut text = value.to_string().into_bytes();
        text.push(b'\n');
        let mut writer = &stream;
        if !matches!(timeout(PATIENCE, writer.write_all(&text)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Waits until the client has closed its side. A next question that comes early waits where it is.
async fn gone(reader: &mut BufReader<&Stream>) {
    if matches!(reader.fill_buf().await, Ok([_, ..])) {
        std::future::pending().await
    }
}

/// Asks a running node; blocking, for the command line.
///
/// # Errors
/// What the node answered, or `UNAVAILABLE` if it did not.
pub fn ask(socket: &Path, question: &Question) -> Result<Value, HostError> {
    Asking::connect(socket)?.ask(question)
}

/// A connection to a running node, for one question after the other; blocking, for the command line.
pub struct Asking {
    reader: BlockingReader<BlockingStream>,
    socket: PathBuf,
}

impl Asking {
    /// Connects.
    ///
    /// # Errors
    /// `UNAVAILABLE` if nobody answers there.
    pub fn connect(socket: &Path) -> Result<Asking, HostError> {
        let failed = |e| unavailable(socket, &e);
        let name = socket.to_fs_name::<GenericFilePath>().map_err(failed)?;
        let stream = BlockingStream::connect(name).map_err(failed)?;
        stream.set_recv_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_send_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Asking { reader: BlockingReader::new(stream), socket: socket.into() })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// What the node answered, or `UNAVAILABLE` if it did not.
    pub fn ask(&mut self, question: &Question) -> Result<Value, HostError> {
        let mut text =
            serde_json::to_vec(question).map_err(|e| HostError::new(Code::Internal, e.to_string()))?;
        text.push(b'\n');
        self.reader.get_mut().write_all(&text).map_err(|e| unavailable(&self.socket, &e))?;
        let mut line = String::new();
        let read = (&mut self.reader).take(MAX_ANSWER).read_line(&mut line);
        if read.map_err(|e| unavailable(&self.socket, &e))? == 0 {
            return Err(unavailable(&self.socket, &"the node closed the connection"));
        }
        let value: Value = serde_json::from_str(&line)
            .map_err(|e| HostError::new(Code::Unavailable, format!("the node's answer: {e}")))?;
        match value.get("error") {
            None => Ok(value),
            Some(error) => Err(HostError::new(
                Code::parse(error["code"].as_str().unwrap_or("INTERNAL_ERROR")),
                error["message"].as_str().unwrap_or_default(),
            )),
        }
    }
}

fn unavailable(socket: &Path, why: &dyn std::fmt::Display) -> HostError {
    let text =
        format!("{}: {why}; is the node running, and is this its socket (--socket)?", socket.display());
    HostError::new(Code::Unavailable, text)
}
