//! A runner without a plugin that says all the right words until it serves, and then destroys what it shares with the node. What it
//! does stands in the name of its plugin. The node must take it for what it is: a hostile process.

use rustix::net::{recvmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;
use thenodes_ipc::launch::{Confinement, Layer, LayerReport, NodeHello, Registration, RunnerHello, Versions};
use thenodes_ipc::ring::{Producer, Region};
use thenodes_ipc::{limits, pack, Frame, FrameDecoder};

type Failure = Box<dyn std::error::Error>;

/// Reads until a frame of the start has come, keeping the descriptors that come with it.
fn step(
    link: &UnixStream,
    decoder: &mut FrameDecoder,
    files: &mut Vec<OwnedFd>,
) -> Result<(String, Vec<u8>), Failure> {
    loop {
        if let Some(Frame::Launch { step, body }) = decoder.next()? {
            return Ok((step.to_owned(), body.to_vec()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = vec![0; 64 * 1024];
        let got = recvmsg(link, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if got.bytes == 0 {
            return Err("the node has gone".into());
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                files.extend(fds);
            }
        }
        decoder.push(&buffer[..got.bytes]);
    }
}

fn say(mut link: &UnixStream, step: &str, body: &[u8]) -> Result<(), Failure> {
    let mut out = Vec::new();
    Frame::Launch { step, body }.encode(&mut out, limits::MAX_FRAME)?;
    Ok(link.write_all(&out)?)
}

/// Header bytes as a frame without a body.
fn framed(header: &[u8]) -> Vec<u8> {
    let mut frame = (2 + header.len() as u32).to_be_bytes().to_vec();
    frame.extend((header.len() as u16).to_be_bytes());
    frame.extend(header);
    frame
}

/// Frames that nobody may send.
fn bad_frame(kind: &str) -> Option<Vec<u8>> {
    Some(match kind {
        "garbage" => b"\xff\xff\xff\xffgarbage".to_vec(),
        "oversized" => (2u32 << 20).to_be_bytes().to_vec(),
        "empty" => vec![0; 4],
        "truncated" => vec![0, 0, 1, 0, 0, 9, 1, 2, 3],
        "reply" => framed(b"\x82\xa4kind\xa5reply\xa2id\xcf\xff\xff\xff\xff\xff\xff\xff\xff"),
        "registered" => framed(b"\x81\xa4kind\xaaregistered"),
        "call" => framed(b"\x83\xa4kind\xa4call\xa2id\x07\xa6method\xaapeers.list"),
        _ => return None,
    })
}

fn publish(up: &mut Producer, mut bell: &UnixStream, bytes: &[u8]) -> Result<(), Failure> {
    up.write(&[bytes])?;
    bell.write_all(&[0])?;
    Ok(())
}

fn run() -> Result<(), Failure> {
    let link = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (mut decoder, mut files) = (FrameDecoder::new(limits::MAX_FRAME), Vec::new());
    let hello: NodeHello = pack::decode(&step(&link, &mut decoder, &mut files)?.1)?;
    let ours =
        RunnerHello { versions: Versions::OURS, max_frame: limits::MAX_FRAME as u32, build: "vandal".into() };
    say(&link, "hello", &pack::encode(&ours)?)?;
    let wall = |layer| LayerReport { layer, in_force: true, detail: "a lie".into() };
    say(&link, "confined", &pack::encode(&Confinement { layers: Layer::ALL.map(wall).to_vec() })?)?;
    step(&link, &mut decoder, &mut files)?;
    let registration = Registration {
        id: "vandal".into(),
        sdk: "none".into(),
        prompts: vec!["hostile".into()],
        config_defaults: Vec::new(),
        extension_kinds: None,
        messages: false,
    };
    say(&link, "registered", &pack::encode(&registration)?)?;
    // The report pipe, the ring, the library.
    let ring = files.into_iter().nth(1).ok_or("no ring")?;
    let (mut up, mut down) = Region::open(&ring)?.runner_side();
    let memory = File::from(ring);
    let mut frames = FrameDecoder::new(limits::MAX_FRAME);
    loop {
        down.wait(Some(Duration::from_secs(20)));
        down.read(frames.room(4096), 4096)?;
        if let Some(Frame::Call { id, .. }) = frames.next()? {
            let mut loaded = Vec::new();
            Frame::Reply { id, failed: None, body: b"\xc0" }.encode(&mut loaded, limits::MAX_FRAME)?;
            publish(&mut up, &link, &loaded)?;
            break;
        }
    }
    let name = hello.plugin.to_string();
    let deed = name.strip_prefix("vandal-").ok_or("no deed")?;
    if let Some(frame) = bad_frame(deed) {
        publish(&mut up, &link, &frame)?;
        return Ok(());
    }
    let size = memory.metadata()?.len();
    let mut endless = Vec::new();
    Frame::Notify { method: "x", body: &vec![0; 900_000] }.encode(&mut endless, limits::MAX_FRAME)?;
    let mut bytes = endless.iter().cycle();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    loop {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        match deed {
            // Every word and every byte.
            "words" => drop(memory.write_at(&random.to_ne_bytes(), random % (size - 8))?),
            // Only the bells and the end, so that no index gives it away.
            "bells" => {
                let up = (size - 4096) / 2 + 512; // a ring, with its four lines of words
                for at in [0, 384, 512, up + 384, up + 512] {
                    memory.write_at(&(random as u32 & 1).to_ne_bytes(), at)?;
                }
            }
            // Long frames that may be ignored, byte after byte, for ever.
            "trickle" => {
                while up.free()? == 0 {
                    up.wait_room(Duration::from_millis(1));
                    if up.closed() {
                        return Ok(());
                    }
                }
                up.write(&[bytes.next().map_or(&[][..], std::slice::from_ref)])?;
                if up.consumer_sleeps() {
                    (&link).write_all(&[0])?;
                }
                continue;
            }
            "deaf" => std::thread::park_timeout(Duration::from_millis(1)),
            _ => return Err("no such deed".into()),
        }
        (&link).write_all(&[0])?;
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vandal: {error}");
            ExitCode::from(9)
        }
    }
}
