//! Opens the plugin's library and takes its table. Here the plugin's code runs for the first time: constructors in
//! `dlopen`, then `register_plugin`. Everything it hands over is checked, though a library that wants to break this process
//! can: that is what the walls around it are for.
#![allow(unsafe_code)]

use crate::broker;
use libloading::os::unix::{Library, Symbol, RTLD_LOCAL, RTLD_NOW};
use std::ffi::c_void;
use std::mem::size_of;
use thenodes_ipc::abi::{self, Bytes, Description, FrameView, HostTable, PluginTable, RegistrarApi};
use thenodes_ipc::launch::{Needed, Registration};

/// Longest word that a plugin may say about itself, and most words of a kind. Bytes, entries.
const MAX_WORD: usize = 128;
const MAX_WORDS: usize = 64;
/// Largest block of configuration defaults, bytes.
const MAX_DEFAULTS: usize = 64 * 1024;

type Entry = unsafe extern "C" fn(*const RegistrarApi);

/// A library whose constructors have run.
pub(crate) struct Opened {
    entry: Symbol<Entry>,
}

/// A plugin that handed over a usable table.
pub(crate) struct Plugin {
    table: PluginTable,
}

/// Opens what the library needs, then the library. The paths are names for the broker, which answers with the verified bytes.
pub(crate) fn open(needed: &[Needed]) -> Result<Opened, String> {
    for needed in needed {
        let path = broker::needed_path(&needed.soname);
        // SAFETY: constructors of this library run confined, like everything after this line.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let library = library
            .map_err(|e| format!("opening {}, which the plugin needs: {}", needed.soname, whole(&e)))?;
        std::mem::forget(library); // stays for the life of the process
    }
    // SAFETY: as above: the walls stand, and what is opened here may do what they let it.
    let library = unsafe { Library::open(Some(broker::LIBRARY), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|e| format!("opening the library: {}", whole(&e)))?;
    // SAFETY: the symbol has this type by contract; a library that lies about it only harms itself.
    let entry = unsafe { library.get::<Entry>(abi::ENTRY_SYMBOL.as_bytes()) };
    let entry = entry.map_err(|_| {
        format!(
            "no symbol {}: is it a plugin? It needs `#[no_mangle] pub unsafe extern \"C\" fn`",
            abi::ENTRY_SYMBOL
        )
    })?;
    std::mem::forget(library); // never unloaded: its threads and tables live until the process ends
    Ok(Opened { entry })
}

/// An error with its causes: what the loader said stands in the innermost.
fn whole(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", whole(cause)),
        None => error.to_string(),
    }
}

/// What `register_handler` writes to.
struct Registrar {
    outcome: Option<Result<PluginTable, String>>,
}

impl Opened {
    /// Calls `register_plugin` and checks what it registered.
    pub(crate) fn register(self) -> Result<Plugin, String> {
        let mut registrar = Registrar { outcome: None };
        let api = RegistrarApi {
            abi_version: abi::ABI_VERSION,
            host_context: std::ptr::from_mut(&mut registrar).cast(),
            register_handler: Some(register_handler),
            reserved: [size_of::<RegistrarApi>(), 0, 0, 0],
        };
        // SAFETY: the registrar and its table live until the function returns, as the contract says.
        unsafe { (self.entry)(&api) };
        match registrar.outcome {
            Some(Ok(table)) => Ok(Plugin { table }),
            Some(Err(reason)) => Err(reason),
            None => Err("register_plugin returned without registering a plugin; its output says why".into()),
        }
    }
}

unsafe extern "C" fn register_handler(context: *mut c_void, plugin: *const PluginTable) -> i32 {
    // SAFETY: the context is the Registrar that `register` lent for this call; one thread calls one function.
    let Some(registrar) = (unsafe { context.cast::<Registrar>().as_mut() }) else { return abi::INVALID };
    if plugin.is_null() {
        registrar.outcome = Some(Err("a null plugin table".into()));
        return abi::INVALID;
    }
    // SAFETY: the plugin says that a table begins here; size and version are read before the fields they cover.
    let (size, version) = unsafe { ((*plugin).size, (*plugin).abi_version) };
    if version != abi::ABI_VERSION {
        let text = format!("plugin ABI version {version}; this runner speaks {}", abi::ABI_VERSION);
        registrar.outcome = Some(Err(text));
        return abi::WRONG_VERSION;
    }
    if size < abi::PLUGIN_TABLE_FIRST {
        registrar.outcome =
            Some(Err(format!("a plugin table of {size} bytes is too small for ABI version {version}")));
        return abi::INVALID;
    }
    if matches!(registrar.outcome, Some(Ok(_))) {
        return abi::INVALID; // one table per library; the SDK puts several handlers behind one
    }
    // SAFETY: the size says that the first fields are there, and each later one only if it covers that too.
    let table = unsafe {
        PluginTable {
            size,
            abi_version: version,
            reserved: 0,
            instance: (*plugin).instance,
            describe: (*plugin).describe,
            start: (*plugin).start,
            receive: (*plugin).receive,
            run: if size >= abi::PLUGIN_TABLE_WITH_RUN { (*plugin).run } else { None },
            features: if size >= size_of::<PluginTable>() { (*plugin).features } else { 0 },
        }
    };
    if table.describe.is_none() || table.start.is_none() || table.receive.is_none() {
        registrar.outcome = Some(Err("a plugin table with a missing function".into()));
        return abi::INVALID;
    }
    registrar.outcome = Some(Ok(table));
    abi::OK
}

impl Plugin {
    /// Asks the plugin about itself.
    pub(crate) fn describe(&self) -> Result<Registration, String> {
        let describe = self.table.describe.ok_or("no describe function")?;
        let none = Bytes::EMPTY;
        let mut about = Description {
            size: size_of::<Description>(),
            id: none,
            sdk: none,
            prompts: none,
            config_defaults: none,
            extension_kinds: none,
        };
        // SAFETY: the function came with this instance; the description is ours and lives for the call.
        let status = unsafe { describe(self.table.instance, &mut about) };
        if status != abi::OK {
            return Err(format!("the plugin's describe function failed with status {status}"));
        }
        let kinds_named = !about.extension_kinds.ptr.is_null();
        Ok(Registration {
            id: text(about.id, MAX_WORD)?,
            sdk: text(about.sdk, MAX_WORD)?,
            prompts: words(about.prompts)?,
            config_defaults: bytes(about.config_defaults, MAX_DEFAULTS)?.to_vec(),
            extension_kinds: kinds_named.then(|| words(about.extension_kinds)).transpose()?,
            messages: self.table.features & abi::FEATURE_MESSAGES != 0,
        })
    }

    /// Gives the plugin its way to the node.
    pub(crate) fn start(&self, host: &'static HostTable) -> Result<(), String> {
        let start = self.table.start.ok_or("no start function")?;
        // SAFETY: the function came with this instance; the host table lives as long as the process.
        match unsafe { start(self.table.instance, host) } {
            abi::OK => Ok(()),
            status => Err(format!("the plugin's start function failed with status {status}")),
        }
    }

    /// Lets a library that reads by itself do so; returns only if it gave up. `None`: it does not.
    pub(crate) fn run(&self) -> Option<i32> {
        let run = self.table.run?;
        // SAFETY: the function came with this instance, and `start` has been called.
        Some(unsafe { run(self.table.instance) })
    }

    /// Hands over one frame.
    pub(crate) fn receive(&self, frame: &FrameView) -> i32 {
        let Some(receive) = self.table.receive else { return abi::INVALID };
        // SAFETY: the function came with this instance; the frame and its bytes live for the call.
        unsafe { receive(self.table.instance, frame) }
    }
}

fn bytes<'a>(bytes: Bytes, limit: usize) -> Result<&'a [u8], String> {
    if bytes.ptr.is_null() || bytes.len == 0 {
        return Ok(&[]);
    }
    if bytes.len > limit {
        return Err(format!("the plugin describes itself in {} bytes; the limit is {limit}", bytes.len));
    }
    // SAFETY: the plugin says that so many bytes are there until the next call into it; they are copied before that.
    Ok(unsafe { std::slice::from_raw_parts(bytes.ptr, bytes.len) })
}

fn text(value: Bytes, limit: usize) -> Result<String, String> {
    String::from_utf8(bytes(value, limit)?.to_vec())
        .map_err(|_| "the plugin describes itself in no UTF-8".into())
}

fn words(value: Bytes) -> Result<Vec<String>, String> {
    let words: Vec<String> =
        text(value, MAX_WORD * MAX_WORDS)?.lines().filter(|w| !w.is_empty()).map(str::to_owned).collect();
    if words.len() > MAX_WORDS || words.iter().any(|word| word.len() > MAX_WORD) {
        return Err(format!(
            "the plugin names more than {MAX_WORDS} words, or one longer than {MAX_WORD} bytes"
        ));
    }
    Ok(words)
}
