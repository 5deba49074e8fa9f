//! A plugin that misbehaves on purpose.
//!
//! One build serves every test: the bytes of [`SWITCH`] are found in the finished library and overwritten with
//! `PHASE:SIN`, and the sin happens in that phase: `constructor`, `register`, `load`, `message`, `thread`, `stop`. With `health:sick` it is not well from the start. With `say:TEXT` it says that to all peers again and again. Without a switch it is well
//! behaved until its prompt (`hostile SIN`) says otherwise. [`probes`] holds the attacks on walls, [`sins`] the crashes, hangs
//! and floods; `hostile-control` ([`control`]) runs the same attacks outside any sandbox, where they must succeed, or the tests
//! would prove nothing.

pub mod control;
pub mod deeds;
pub mod honest;
pub mod probes;
pub mod sins;

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use thenodes::config::{ConfigDefaults, EncryptionConfig, LoggingConfig};
use thenodes::events::{dispatcher, LogEvent, LogLevel, LogSink, SystemEvent};
use thenodes::host::{Code, HostError};
use thenodes::network::message::{Message, MessageType};
use thenodes::plugin_host::{Plugin, PluginContext, PluginRegistrarApi};
use thenodes::realms::RealmInfo;

/// `hostile-switch=` and 241 bytes to be overwritten: a phase, a sin, and an argument as long as a path.
#[no_mangle]
pub static SWITCH: [u8; 256] = padded(b"hostile-switch=none:none");

/// The text, and blanks behind it.
const fn padded(text: &[u8]) -> [u8; 256] {
    let mut bytes = [b' '; 256];
    let mut at = 0;
    while at < text.len() {
        bytes[at] = text[at];
        at += 1;
    }
    bytes
}

/// The sin for this phase, if the switch names one.
fn chosen(phase: &str) -> Option<String> {
    // SAFETY: a static of our own; volatile, because its bytes are changed in the file where the compiler cannot see.
    let bytes = unsafe { std::ptr::read_volatile(&SWITCH) };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (_, choice) = text.split_once('=')?;
    let (at, sin) = choice.trim_end_matches([' ', '\0']).split_once(':')?;
    (at == phase && sin != "none").then(|| sin.to_owned())
}

fn sin_in(phase: &str) {
    if let Some(sin) = chosen(phase) {
        eprintln!("{}", sins::commit(&sin));
    }
}

extern "C" fn constructor() {
    sin_in("constructor");
}

#[used]
#[link_section = ".init_array"]
static CONSTRUCTOR: extern "C" fn() = constructor;

struct Hostile;

/// It says that it is not well.
static SICK: AtomicBool = AtomicBool::new(false);

/// A sink of the plugin's own: says what it hears of other plugins.
struct Listener;

#[async_trait::async_trait]
impl LogSink for Listener {
    async fn handle(&self, event: &LogEvent) {
        if let LogEvent::Plugin(event) = event {
            println!("heard that {} is {}", event.plugin, event.action);
        }
    }
}

#[async_trait::async_trait]
impl Plugin for Hostile {
    async fn on_load(&self, ctx: &PluginContext) -> Result<(), String> {
        sin_in("load");
        // Bytes to leave, and what to do with what was left.
        if let Some(choice) = chosen("state") {
            match ctx.left_state().await {
                Ok(None) => println!("was left nothing"),
                Ok(Some(_)) if choice.ends_with(" die") => std::process::abort(),
                Ok(Some(state)) => {
                    let whole = state.iter().enumerate().all(|(at, byte)| *byte == at as u8);
                    println!("was left {} bytes, whole: {whole}", state.len());
                }
                Err(error) => println!("was refused its state: {error}"),
            }
            println!("too early: {}", ctx.leave_state(b"x").await.is_err());
        }
        if let Some(text) = chosen("say") {
            let text = MessageType::Text(text);
            let message = Message::new(ctx.node_id(), "*", text, None, ctx.realm().cloned()).as_json();
            let peers = ctx.peer_manager.clone();
            // Unasked, again and again: whoever comes hears it.
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    peers.broadcast(&message).await;
                }
            });
        }
        if chosen("thread").is_some() {
            std::thread::spawn(|| sin_in("thread"));
        }
        match chosen("refuse") {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    async fn on_stop(&self, ctx: &PluginContext) {
        sin_in("stop");
        if let Some(count) =
            chosen("state").and_then(|choice| choice.split(' ').next()?.parse::<usize>().ok())
        {
            let state: Vec<u8> = (0..count).map(|at| at as u8).collect();
            println!("leaving {count} bytes: {:?}", ctx.leave_state(&state).await);
        }
    }

    async fn on_health(&self, _ctx: &PluginContext) -> Result<(), String> {
        match SICK.load(Ordering::Relaxed) || chosen("health").is_some() {
            true => Err("a fever on purpose".into()),
            false => Ok(()),
        }
    }

    fn on_message(&self, message: &Message, ctx: &PluginContext) {
        sin_in("message");
        if let MessageType::Text(text) = &message.msg_type {
            if deeds::on_message(text, ctx) {
                return;
            }
            if text == "call back" {
                // A request to the node from inside a synchronous handler, waited for on the spot.
                let peers = tokio::runtime::Handle::current().block_on(ctx.peer_manager.list_node_ids());
                println!("called back: {peers:?}");
            }
            if let Some(sin) = text.strip_prefix("sin ") {
                println!("{}", sins::commit(sin));
            }
        }
    }

    async fn on_prompt(&self, input: &str, ctx: &PluginContext) -> Option<String> {
        match input {
            // Everything a well-behaved plugin may do, beside the sins.
            "good" => {
                log::info!("a line from the log macros");
                println!("a line on stdout");
                eprintln!("a line on stderr");
                let task = tokio::spawn(async {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    21 * 2
                });
                let peers = ctx.peer_manager.list_peers().await.len();
                Some(format!("{} {peers}", task.await.ok()?))
            }
            "emit" => {
                let event = SystemEvent {
                    meta: dispatcher::meta("example", LogLevel::Info),
                    action: "hostile_was_here".into(),
                    detail: Some("from a plugin".into()),
                };
                ctx.events().emit(LogEvent::System(event));
                Some("emitted".into())
            }
            "sink" => {
                ctx.events().register_sink(Arc::new(Listener));
                Some("registered".into())
            }
            "sick" | "well" => {
                SICK.store(input == "sick", Ordering::Relaxed);
                Some(input.into())
            }
            "sleep" => {
                std::future::pending::<()>().await;
                None
            }
            input => match input.strip_prefix("say ") {
                Some(text) => {
                    let message = Message::new(
                        ctx.node_id(),
                        "*",
                        MessageType::Text(text.into()),
                        None,
                        ctx.realm().cloned(),
                    );
                    ctx.peer_manager
                        .try_broadcast(&message.as_json())
                        .await
                        .ok()
                        .map(|peers| peers.to_string())
                }
                None => match deeds::on_prompt(input, ctx).await {
                    None => Some(sins::commit(input)),
                    done => done,
                },
            },
        }
    }

    async fn on_request(&self, name: &str, body: &[u8], _ctx: &PluginContext) -> Result<Vec<u8>, HostError> {
        let text = String::from_utf8_lossy(body);
        match name {
            // Every error that a plugin can make up, with words that would move a terminal.
            "fail" => {
                Err(HostError::new(Code::parse(&text), "\u{1b}[2Jfailed on purpose\nthenodes: all is well"))
            }
            _ => Ok(sins::commit(&text).into_bytes()),
        }
    }

    fn prompt_prefix(&self) -> Option<&str> {
        Some("hostile")
    }

    fn early_config_defaults(&self) -> Option<ConfigDefaults> {
        chosen("defaults")?;
        Some(ConfigDefaults {
            port: Some(4711),
            realm: Some(RealmInfo::new("taken over", "1")),
            app_name: Some("Suggested".into()),
            encryption: Some(EncryptionConfig::default()),
            logging: Some(LoggingConfig { json_path: Some("/etc/hostile".into()), ..Default::default() }),
            capabilities: Some(vec!["hostile".into()]),
            ..Default::default()
        })
    }

    fn plugin_id(&self) -> &str {
        "hostile"
    }
}

/// The registrar as C sees it, for registering wrongly.
#[repr(C)]
struct RawRegistrar {
    abi_version: u32,
    host_context: *mut c_void,
    register_handler: Option<unsafe extern "C" fn(*mut c_void, *const c_void) -> i32>,
    reserved: [usize; 4],
}

/// Words of today's plugin table, and of one that a later minor of the SDK might have.
const TABLE_WORDS: usize = 7;
const LATER_WORDS: usize = 8;

/// Passes a table on as a later SDK would: larger, with fields behind the known ones.
unsafe extern "C" fn register_as_later_sdk(context: *mut c_void, table: *const c_void) -> i32 {
    // SAFETY: the context is the runner's registrar, the table is the SDK's; both live for the call.
    unsafe {
        let runner = &*context.cast::<RawRegistrar>();
        let mut later = [0x7fusize; LATER_WORDS];
        std::ptr::copy_nonoverlapping(table.cast::<usize>(), later.as_mut_ptr(), TABLE_WORDS);
        later[0] = std::mem::size_of_val(&later);
        runner.register_handler.map_or(-1, |register| register(runner.host_context, later.as_ptr().cast()))
    }
}

/// Entry point.
///
/// # Safety
/// Called by the runner with a registrar that lives for the call.
#[no_mangle]
pub unsafe extern "C" fn register_plugin(api: *const PluginRegistrarApi) {
    sin_in("register");
    match chosen("abi").as_deref() {
        Some("silent") => return,
        Some("later") => {
            let shim = RawRegistrar {
                abi_version: 1,
                host_context: api.cast_mut().cast(),
                register_handler: Some(register_as_later_sdk),
                reserved: [std::mem::size_of::<RawRegistrar>(), 0, 0, 0],
            };
            let shim = std::ptr::from_ref(&shim).cast::<PluginRegistrarApi>();
            let registered =
                PluginRegistrarApi::from_raw(shim).and_then(|api| api.register_plugin(Box::new(Hostile)));
            return eprintln!("registered like a later SDK: {registered:?}");
        }
        Some(sin) => {
            // SAFETY: the registrar begins with these fields; the table is as wrong as the sin wants it, but it is memory.
            unsafe {
                let raw = &*api.cast::<RawRegistrar>();
                let version: usize = if sin == "version" { 99 } else { 1 };
                let size: usize = if sin == "small" { 16 } else { 48 };
                let table = [size, version, 0, 0, 0, 0];
                if let Some(register) = raw.register_handler {
                    let table = if sin == "null" { std::ptr::null() } else { table.as_ptr().cast() };
                    eprintln!("registering wrongly gave status {}", register(raw.host_context, table));
                }
            }
            return;
        }
        None => {}
    }
    let registered = PluginRegistrarApi::from_raw(api).and_then(|api| api.register_plugin(Box::new(Hostile)));
    if let Err(error) = registered {
        eprintln!("hostile: {error}");
    }
}
