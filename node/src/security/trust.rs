//! The verdict about a peer's certificate: a pure function of rules, facts, the trusted set and the time. The same for both
//! directions; it is enforced before the peer's first byte is read.

use super::bindings::{BindingError, Meeting};
use super::chain::Broken;
use super::pki::CertificateFacts;
use crate::config::{TrustMode, TrustPolicy};
use std::collections::BTreeSet;

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Let in.
    Accept,
    /// Keep out.
    Reject,
    /// Hear who it says it is, and nothing else: what its id came with before decides ([`first_use`]).
    AskMemory,
}

/// The decision and everything that an audit wants to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What follows.
    pub decision: Decision,
    /// Stable word.
    pub reason: &'static str,
    /// Whether the certificate is within its validity.
    pub time_valid: Option<bool>,
    /// Why it is not.
    pub time_reason: Option<&'static str>,
    /// Whether it has a path to an authority, where that is asked, and why not.
    pub chain: Option<Result<(), Broken>>,
    /// Result of fingerprint pins, if there are any.
    pub pinned_fingerprint: Option<bool>,
    /// Result of subject pins, if there are any.
    pub pinned_subject: Option<bool>,
    /// `passed`, `failed` or `notapplied`.
    pub realm_binding: &'static str,
}

impl Verdict {
    /// A refusal before any certificate could be judged.
    pub fn refused(reason: &'static str) -> Self {
        Self {
            decision: Decision::Reject,
            reason,
            time_valid: None,
            time_reason: None,
            chain: None,
            pinned_fingerprint: None,
            pinned_subject: None,
            realm_binding: "notapplied",
        }
    }
}

/// Judges a certificate. `now` is seconds since 1970. Every rule that is configured must hold, in every mode, and they are asked in
/// the order of the documents: pins of the key, of the subject, the realm, dates and chain, and last the mode.
pub fn judge(
    policy: &TrustPolicy,
    facts: Option<&CertificateFacts>,
    trusted: Option<&BTreeSet<String>>,
    chain: Option<Result<(), Broken>>,
    realm_name: &str,
    now: i64,
) -> Verdict {
    let mut verdict = Verdict { chain, ..Verdict::refused("fingerprint-missing") };
    let Some(facts) = facts else {
        let ruled = policy.mode.needs_certificates()
            || policy.realm_subject_binding
            || !policy.pin_fingerprints.is_empty()
            || !policy.pin_subjects.is_empty();
        if !ruled {
            verdict.decision = Decision::Accept;
            verdict.reason = everybody(policy.mode);
        }
        return verdict;
    };
    if !policy.pin_fingerprints.is_empty() {
        let matches = policy.pin_fingerprints.contains(&facts.fingerprint);
        verdict.pinned_fingerprint = Some(matches);
        if !matches {
            verdict.reason = "fp-pin-mismatch";
            return verdict;
        }
    }
    if !policy.pin_subjects.is_empty() {
        let Some(subject) = &facts.subject else {
            verdict.pinned_subject = Some(false);
            verdict.reason = "subject-unparsed";
            return verdict;
        };
        let matches = policy.pin_subjects.iter().any(|pin| match pin.strip_prefix('~') {
            Some(part) => !part.is_empty() && subject.contains(part),
            None => subject == pin,
        });
        verdict.pinned_subject = Some(matches);
        if !matches {
            verdict.reason = "subject-pin-mismatch";
            return verdict;
        }
    }
    if policy.realm_subject_binding {
        let bound = facts.subject.as_ref().is_some_and(|subject| subject.contains(realm_name));
        verdict.realm_binding = if bound { "passed" } else { "failed" };
        if !bound {
            verdict.reason = "realm-subject-mismatch";
            return verdict;
        }
    }
    let (early, late) = match facts.valid {
        Some((from, until)) => (now < from, now > until),
        None => (true, true), // a certificate whose dates cannot be read has none
    };
    verdict.time_valid = Some(!early && !late);
    verdict.time_reason = match (early, late) {
        (false, false) => None,
        (true, false) => Some("not-yet-valid"),
        (false, true) => Some("expired"),
        (true, true) => Some("unreadable"),
    };
    if (late && policy.reject_expired) || (early && policy.reject_before_valid) {
        verdict.reason = "time-invalid";
        return verdict;
    }
    // Unreadable authorities, no path, no answer where one was needed: all the same.
    let has_path = chain == Some(Ok(()));
    if policy.needs_chain() && !has_path {
        verdict.reason = "chain-invalid";
        return verdict;
    }
    let known = trusted.map(|set| set.contains(&facts.fingerprint));
    (verdict.decision, verdict.reason) = match (policy.mode, known) {
        (TrustMode::Open | TrustMode::Hybrid, _) => (Decision::Accept, everybody(policy.mode)),
        (TrustMode::Allowlist | TrustMode::Observe | TrustMode::Tofu, None) => {
            (Decision::Reject, "trusted-dir-unreadable")
        }
        (TrustMode::Allowlist | TrustMode::Observe, Some(true)) => (Decision::Accept, "present-in-allowlist"),
        (TrustMode::Allowlist, Some(false)) => (Decision::Reject, "not-in-allowlist"),
        (TrustMode::Observe, Some(false)) => (Decision::Reject, "observe-only"),
        (TrustMode::Tofu, Some(true)) => (Decision::Accept, "seen-before"),
        (TrustMode::Tofu, Some(false)) => (Decision::AskMemory, "first-use"),
        (TrustMode::Ca, _) => (Decision::Accept, "ca-chain-valid"),
    };
    verdict
}

/// The reason where nobody is kept out for who he is.
fn everybody(mode: TrustMode) -> &'static str {
    match mode {
        TrustMode::Hybrid => "hybrid-placeholder-open",
        TrustMode::Open | TrustMode::Allowlist | TrustMode::Observe | TrustMode::Tofu | TrustMode::Ca => {
            "open-policy"
        }
    }
}

/// What follows from what the memory says of an id and a key. What cannot be known is no first use.
pub fn first_use(met: &Result<Meeting, BindingError>) -> (bool, &'static str) {
    match met {
        Ok(Meeting::First) => (true, "new-tofu"),
        Ok(Meeting::Again) => (true, "seen-before"),
        Ok(Meeting::Connected) => (false, "tofu-id-connected"),
        Ok(Meeting::Other { .. }) => (false, "tofu-mismatch"),
        Err(BindingError::Unreadable { .. }) => (false, "tofu-storage-unreadable"),
        Err(BindingError::Unwritable { .. }) => (false, "tofu-storage-unwritable"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(mode: TrustMode) -> TrustPolicy {
        TrustPolicy {
            mode,
            reject_expired: true,
            reject_before_valid: true,
            realm_subject_binding: false,
            pin_subjects: vec![],
            pin_fingerprints: vec![],
            store_observed: false,
            enforce_chain: false,
        }
    }

    fn facts() -> CertificateFacts {
        CertificateFacts {
            fingerprint: "aa".into(),
            subject: Some("CN=n, O=My Realm".into()),
            common_name: None,
            valid: Some((100, 200)),
        }
    }

    /// What a certificate with a path has, where one is asked for.
    fn chain(policy: &TrustPolicy) -> Option<Result<(), Broken>> {
        policy.needs_chain().then_some(Ok(()))
    }

    fn judged(policy: &TrustPolicy, trusted: &[&str], now: i64) -> (bool, &'static str) {
        let set = trusted.iter().map(ToString::to_string).collect();
        let verdict = judge(policy, Some(&facts()), Some(&set), chain(policy), "My Realm", now);
        (verdict.decision == Decision::Accept, verdict.reason)
    }

    #[test]
    fn the_allowlist_lets_in_whom_it_names_and_nobody_else() {
        let allow = policy(TrustMode::Allowlist);
        assert_eq!(judged(&allow, &["aa"], 150), (true, "present-in-allowlist"));
        assert_eq!(judged(&allow, &["bb"], 150), (false, "not-in-allowlist"));
        assert!(
            judge(&allow, Some(&facts()), None, None, "", 150).decision == Decision::Reject,
            "an unreadable directory trusts nobody"
        );
        let without = judge(&allow, None, Some(&BTreeSet::new()), None, "", 150);
        assert_eq!(without.decision, Decision::Reject, "no certificate, no entry");
    }

    #[test]
    fn each_mode_has_its_own_answer_to_a_stranger_and_none_is_silent_about_it() {
        let stranger = |mode| judged(&policy(mode), &[], 150);
        let friend = |mode| judged(&policy(mode), &["aa"], 150);
        let nobody = |mode| judge(&policy(mode), None, Some(&BTreeSet::new()), None, "", 150).decision;
        assert_eq!(stranger(TrustMode::Observe), (false, "observe-only"));
        assert_eq!(friend(TrustMode::Observe), (true, "present-in-allowlist"));
        assert_eq!(stranger(TrustMode::Hybrid), (true, "hybrid-placeholder-open"));
        assert_eq!(friend(TrustMode::Tofu), (true, "seen-before"));
        let tofu = judge(&policy(TrustMode::Tofu), Some(&facts()), Some(&BTreeSet::new()), None, "", 150);
        assert_eq!((tofu.decision, tofu.reason), (Decision::AskMemory, "first-use"));
        for mode in [TrustMode::Allowlist, TrustMode::Observe, TrustMode::Tofu] {
            assert_eq!(nobody(mode), Decision::Reject, "{mode:?}");
            let unreadable = judge(&policy(mode), Some(&facts()), None, None, "", 150);
            assert_eq!(unreadable.decision, Decision::Reject, "{mode:?}");
        }
        for mode in [TrustMode::Open, TrustMode::Hybrid] {
            assert_eq!(nobody(mode), Decision::Accept, "{mode:?}");
        }
    }

    #[test]
    fn only_the_first_key_of_an_id_is_let_in_and_a_broken_memory_lets_in_nobody() {
        let path = std::path::PathBuf::from("x");
        let unreadable = BindingError::Unreadable { path: path.clone(), what: String::new() };
        let unwritable = BindingError::Unwritable { path, what: String::new() };
        for (met, verdict) in [
            (Ok(Meeting::First), (true, "new-tofu")),
            (Ok(Meeting::Again), (true, "seen-before")),
            (Ok(Meeting::Connected), (false, "tofu-id-connected")),
            (Ok(Meeting::Other { fingerprint: "bb".into() }), (false, "tofu-mismatch")),
            (Err(unreadable), (false, "tofu-storage-unreadable")),
            (Err(unwritable), (false, "tofu-storage-unwritable")),
        ] {
            assert_eq!(first_use(&met), verdict);
        }
    }

    #[test]
    fn dates_count_in_every_mode_unless_the_operator_says_otherwise() {
        for mode in TrustMode::ALL {
            assert_eq!(judged(&policy(mode), &["aa"], 201), (false, "time-invalid"));
            assert_eq!(judged(&policy(mode), &["aa"], 99), (false, "time-invalid"));
            let lax = TrustPolicy { reject_expired: false, ..policy(mode) };
            assert!(judged(&lax, &["aa"], 201).0, "{mode:?}");
        }
    }

    #[test]
    fn every_rule_must_hold() {
        let open = policy(TrustMode::Open);
        assert!(judged(&open, &[], 150).0);
        let pinned = |pin: &str| TrustPolicy { pin_subjects: vec![pin.into()], ..open.clone() };
        assert!(judged(&pinned("~My Realm"), &[], 150).0);
        assert!(judged(&pinned("CN=n, O=My Realm"), &[], 150).0);
        for pin in ["~Other", "~", "CN=n"] {
            assert_eq!(judged(&pinned(pin), &[], 150), (false, "subject-pin-mismatch"), "{pin}");
        }
        let fingerprint = TrustPolicy { pin_fingerprints: vec!["bb".into()], ..open.clone() };
        assert_eq!(judged(&fingerprint, &[], 150), (false, "fp-pin-mismatch"));
        let bound = TrustPolicy { realm_subject_binding: true, ..open };
        assert!(judged(&bound, &[], 150).0);
        assert_eq!(
            judge(&bound, Some(&facts()), None, None, "Elsewhere", 150).reason,
            "realm-subject-mismatch"
        );
        assert_eq!(judge(&bound, None, None, None, "My Realm", 150).decision, Decision::Reject);
    }

    #[test]
    fn an_authority_decides_where_it_is_asked_and_silence_is_no_path() {
        let ca = policy(TrustMode::Ca);
        let judged = |policy: &TrustPolicy, chain| {
            let trusted = BTreeSet::from(["aa".to_owned()]);
            let verdict = judge(policy, Some(&facts()), Some(&trusted), chain, "", 150);
            (verdict.decision, verdict.reason)
        };
        assert_eq!(judged(&ca, Some(Ok(()))), (Decision::Accept, "ca-chain-valid"));
        for chain in [Some(Err("revoked")), None] {
            assert_eq!(judged(&ca, chain), (Decision::Reject, "chain-invalid"), "trusted by key or not");
        }
        let both = TrustPolicy { enforce_chain: true, ..policy(TrustMode::Allowlist) };
        assert_eq!(judged(&both, Some(Ok(()))), (Decision::Accept, "present-in-allowlist"));
        assert_eq!(judged(&both, Some(Err("expired"))), (Decision::Reject, "chain-invalid"));
    }

    #[test]
    fn rules_are_asked_in_the_order_of_the_documents() {
        let all = TrustPolicy {
            pin_fingerprints: vec!["bb".into()],
            pin_subjects: vec!["CN=x".into()],
            realm_subject_binding: true,
            enforce_chain: true,
            ..policy(TrustMode::Allowlist)
        };
        let reason = |policy: &TrustPolicy, now| {
            judge(policy, Some(&facts()), Some(&BTreeSet::new()), Some(Err("revoked")), "Elsewhere", now)
                .reason
        };
        assert_eq!(reason(&all, 999), "fp-pin-mismatch");
        let all = TrustPolicy { pin_fingerprints: vec![], ..all };
        assert_eq!(reason(&all, 999), "subject-pin-mismatch");
        let all = TrustPolicy { pin_subjects: vec![], ..all };
        assert_eq!(reason(&all, 999), "realm-subject-mismatch");
        let all = TrustPolicy { realm_subject_binding: false, ..all };
        assert_eq!(reason(&all, 999), "time-invalid");
        assert_eq!(reason(&all, 150), "chain-invalid");
        let all = TrustPolicy { enforce_chain: false, ..all };
        assert_eq!(reason(&all, 150), "not-in-allowlist");
    }
}
