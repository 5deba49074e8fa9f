//! A runner that writes what it likes into the memory that it shares with the node: the node does not panic, block or grow, names what
//! it saw, and the neighbours' calls go on.

use std::time::Duration;
use thenodes_node::config::Transport;
use thenodes_node::plugins::lifecycle::State;
use thenodes_tests::inside::{ask, tell, wait_for, Inside};
use thenodes_tests::{bin_dir, plugin, PATIENCE};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_frames_through_the_ring_are_named() {
    let vandals = Inside::with_runner(Transport::Ring, bin_dir().join("vandal-runner"));
    for (deed, text) in [
        ("garbage", "cap is"),
        ("oversized", "a frame of 2097152 bytes"),
        ("empty", "a frame of 0 bytes"),
        ("truncated", "inside a frame"),
        ("reply", "never made"),
        ("registered", "registered after the start"),
        ("call", "of another generation"),
    ] {
        let vandal = vandals.begin(&format!("vandal-{deed}"), &plugin("echo"));
        let status = wait_for(&vandal, "death", |status| status.last_death.is_some()).await;
        let cause = status.last_death.expect("it died");
        let said = cause.to_string();
        assert!(cause.word() == "protocol_violation" && said.contains(text), "{deed}: {said}");
        vandal.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_destroys_shared_memory_harms_itself_alone() {
    let world = Inside::new(Transport::Ring);
    let neighbour = world.start("neighbour", &plugin("hostile")).await;
    let vandals = Inside::with_runner(Transport::Ring, bin_dir().join("vandal-runner"));
    for deed in ["words", "bells", "trickle", "deaf"] {
        let vandal = vandals.begin(&format!("vandal-{deed}"), &plugin("echo"));
        wait_for(&vandal, "first life", |status| status.last_death.is_some() || status.state == State::Ready)
            .await;
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let vandal = vandal.clone();
            calls.spawn(async move {
                drop(tell(&vandal, "x"));
                ask(&vandal, "x", Duration::from_secs(2)).await
            });
        }
        for n in 0..100 {
            let words = format!("after-timer 5 {n}");
            let answer = tokio::time::timeout(PATIENCE / 2, ask(&neighbour, &words, PATIENCE)).await;
            assert_eq!(answer.expect("nobody holds the node up").as_deref(), Ok(words.as_str()), "{deed}");
        }
        while let Some(answered) = calls.join_next().await {
            assert!(answered.expect("no panic").is_err(), "{deed}: nobody there could answer");
        }
        let status = wait_for(&vandal, "death", |status| status.last_death.is_some()).await;
        eprintln!("{deed}: {}", status.last_death.expect("it died"));
        vandal.stop().await;
        wait_for(&vandal, "end", |status| !status.state.has_process()).await;
    }
    assert_eq!(neighbour.status().starts, 1);
}
