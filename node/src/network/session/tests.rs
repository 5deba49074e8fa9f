//! How long a peer is endured that never ends what it begins to say.

use super::super::for_tests::a_network;
use super::super::peers::Direction;
use super::super::wire::MAX_LINE;
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a peer is endured that says this again and again, and why no longer; at most ten minutes.
async fn endures(says: &'static [u8], every: Duration) -> Option<(String, Duration)> {
    endures_for(says, every, Duration::from_secs(600)).await
}

async fn endures_for(says: &'static [u8], every: Duration, most: Duration) -> Option<(String, Duration)> {
    let network = a_network();
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let info = PeerInfo { node_id: "p".into(), addr: ([127, 0, 0, 1], 1).into(), capabilities: vec![] };
    let place = network.peers.take(info, Direction::Inbound, clock()).expect("the id is free");
    let mut unwelcome = std::pin::pin!(std::future::pending::<String>());
    let session = run(&network, Box::new(ours), LineDecoder::new(MAX_LINE), place, unwelcome.as_mut());
    let (mut hears, mut speaks) = tokio::io::split(theirs);
    let speaking = async {
        while speaks.write_all(says).await.is_ok() {
            sleep(every).await;
        }
        std::future::pending::<()>().await;
    };
    let hearing = async {
        let mut heard = vec![0; 1000];
        while hears.read(&mut heard).await.is_ok_and(|count| count > 0) {}
        std::future::pending::<()>().await;
    };
    let begun = clock();
    tokio::select! {
        why = session => Some((why, clock() - begun)),
        () = speaking => None,
        () = hearing => None,
        () = sleep(most) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_that_never_ends_ends_the_connection_in_time_and_pauses_between_lines_do_not() {
    let second = Duration::from_secs(1);
    let (why, after) = endures(b"x", second).await.expect("ended");
    assert!(why.contains("no end within 60 s"), "{why}");
    assert!((LINE_DEADLINE..LINE_DEADLINE + 2 * second).contains(&after), "{after:?}");
    assert_eq!(endures(b"\n", 30 * second).await, None);
    // Bytes of some line always wait here, and each line has its end in time.
    assert_eq!(endures(b"end\nbegin", 30 * second).await, None);
    let slower = endures(b"begin", 30 * second).await;
    assert!(slower.is_some_and(|(why, _)| why.contains("no end within")));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answered_and_says_nothing_is_let_go_after_its_time() {
    let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
    let (why, after) = endures_for(b"", hour, 10 * hour).await.expect("ended");
    assert_eq!(why, "silent for 3600 s");
    assert!((hour..hour + minute).contains(&after), "{after:?}");
    // The control: one that says something now and then, whatever it is.
    assert_eq!(endures_for(b"\n", hour - minute, 10 * hour).await, None);
}
