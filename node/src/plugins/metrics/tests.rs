//! What is counted is what is shown, and the page is one that Prometheus reads: compared with a page that was read by a person.

use super::*;
use thenodes_ipc::launch::{Level, Step};

fn echo() -> Figures {
    let (calls, deaths) = (Calls::default(), Deaths::default());
    calls.answered(Method::of("message"), Duration::from_micros(10), None, 1);
    calls.answered(Method::of("message"), Duration::from_micros(11), None, 1);
    calls.answered(Method::of("request.secret name"), Duration::from_millis(3), Some(&Code::Unhandled), 1);
    calls.answered(
        Method::of("request.another"),
        Duration::from_secs(31),
        Some(&Code::Other("X\"\n".into())),
        1,
    );
    calls.unanswered(Method::of("prompt"), &Code::Timeout);
    deaths.count(&Cause::Signal(11));
    deaths.count(&Cause::Signal(6));
    deaths.count(&Cause::Limit { kind: LimitKind::Oom, detail: String::new(), give_up: false });
    Figures {
        plugin: "echo".into(),
        state: "Ready",
        restarts: 3,
        deaths: deaths.figures(),
        methods: calls.figures(),
        panics: 1,
        requests: 7,
        denied: 2,
        refused: 5,
        queue: (4, 4096),
        dropped: 9,
        lost: 1,
        throttled: 6,
        lines_dropped: 8,
        usage: Some((5 << 20, Duration::from_millis(1250))),
    }
}

#[test]
fn the_page_is_the_one_that_was_agreed_on() {
    let dead = Figures { plugin: "od\"d\\\n".into(), state: "Failed", ..Figures::default() };
    let node = NodeFigures { peers: 2, rejected: 1 };
    let page = render(Some(&node), &[echo(), dead]);
    let page = page.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let agreed = include_str!("page.prom");
    for (line, (is, was)) in page.lines().zip(agreed.lines()).enumerate() {
        assert_eq!(is, was, "line {} of plugins/metrics/page.prom", line + 1);
    }
    assert_eq!(page.lines().count(), agreed.lines().count());
}

#[test]
fn every_line_is_a_comment_or_a_sample_of_a_family_that_was_introduced() {
    let page = render(None, &[echo()]);
    let mut family = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            family = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            assert!(series.starts_with(&family) && value.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn a_call_is_counted_once_and_names_that_a_plugin_chose_are_no_labels() {
    let of = echo();
    let calls: u64 = of.methods.iter().map(MethodFigures::calls).sum();
    assert_eq!(calls, 5);
    let page = render(None, &[of]);
    assert!(!page.contains("secret") && !page.contains("another") && !page.contains('X'), "{page}");
    assert_eq!(Method::of("request"), Method::Other);
    assert_eq!(Method::ALL.map(|method| method as usize), [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn every_cause_of_death_has_its_counter() {
    let level = Cause::Level { level: Level::Refused(Vec::new()), required: String::new() };
    let mut causes = vec![
        Cause::Signal(31),
        Cause::Signal(9),
        Cause::Denied(String::new()),
        Cause::Exit(1),
        Cause::Violation(String::new()),
        Cause::Hang(String::new()),
        Cause::Wedged(String::new()),
        Cause::Health(String::new()),
        Cause::Deadline("x"),
        Cause::Refused(Step::Open, String::new()),
        level,
        Cause::Load(String::new()),
        Cause::Permissions(String::new()),
        Cause::Spawn(String::new()),
        Cause::Asked,
    ];
    causes.extend(LimitKind::ALL.map(|kind| Cause::Limit { kind, detail: String::new(), give_up: false }));
    for cause in causes {
        let deaths = Deaths::default();
        deaths.count(&cause);
        assert_eq!(deaths.figures(), [(cause.word(), 1)], "{cause:?}");
    }
}

#[test]
fn every_code_has_its_counter() {
    let known = &CODES[..CODES.len() - 1];
    for word in known {
        let code = Code::parse(word);
        assert!(!matches!(code, Code::Other(_)), "{word}");
        let calls = Calls::default();
        calls.unanswered(Method::Prompt, &code);
        let of = &calls.figures()[Method::Prompt as usize];
        let at = CODES.iter().position(|other| other == word).expect("it is there");
        assert_eq!((of.errors[at], of.calls()), (1, 1), "{word}");
    }
}

#[test]
fn a_quantile_lies_in_the_bucket_that_holds_it() {
    let mut buckets = [0; BUCKETS];
    assert_eq!(quantile(&buckets, 0.5), None);
    (buckets[3], buckets[10]) = (98, 2);
    let (half, most) = (quantile(&buckets, 0.5).expect("some"), quantile(&buckets, 0.99).expect("some"));
    assert!(Duration::from_micros(50) < half && half <= Duration::from_micros(100), "{half:?}");
    assert!(Duration::from_millis(10) < most && most <= Duration::from_millis(25), "{most:?}");
    let mut endless = [0; BUCKETS];
    endless[BUCKETS - 1] = 1;
    assert_eq!(quantile(&endless, 0.5), Some(Duration::from_secs(30)), "no more is known");
}
