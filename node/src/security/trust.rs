//! The verdict about a peer's certificate: a pure function of rules, facts, the trusted set and the time. The same for both
//! directions; it is enforced before the peer's first byte is read.

use super::pki::CertificateFacts;
use crate::config::{TrustMode, TrustPolicy};
use std::collections::BTreeSet;

/// The decision and everything that an audit wants to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Let in.
    pub accepted: bool,
    /// Stable word.
    pub reason: &'static str,
    /// Whether the certificate is within its validity.
    pub time_valid: Option<bool>,
    /// Result of fingerprint pins, if there are any.
    pub pinned_fingerprint: Option<bool>,
    /// Result of subject pins, if there are any.
    pub pinned_subject: Option<bool>,
    /// `passed`, `failed` or `notapplied`.
    pub realm_binding: &'static str,
}

/// Judges a certificate. `now` is seconds since 1970. Every rule that is configured must hold, in every mode.
pub fn judge(
    policy: &TrustPolicy,
    facts: Option<&CertificateFacts>,
    trusted: Option<&BTreeSet<String>>,
    realm_name: &str,
    now: i64,
) -> Verdict {
    let mut verdict = Verdict {
        accepted: false,
        reason: "fingerprint-missing",
        time_valid: None,
        pinned_fingerprint: None,
        pinned_subject: None,
        realm_binding: "notapplied",
    };
    let Some(facts) = facts else {
        let ruled = policy.mode == TrustMode::Allowlist
            || policy.realm_subject_binding
            || !policy.pin_fingerprints.is_empty()
            || !policy.pin_subjects.is_empty();
        if !ruled {
            verdict.accepted = true;
            verdict.reason = "open-policy";
        }
        return verdict;
    };
    let (early, late) = match facts.valid {
        Some((from, until)) => (now < from, now > until),
        None => (true, true), // a certificate whose dates cannot be read has none
    };
    verdict.time_valid = Some(!early && !late);
    if (late && policy.reject_expired) || (early && policy.reject_before_valid) {
        verdict.reason = "time-invalid";
        return verdict;
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
    if !policy.pin_fingerprints.is_empty() {
        let matches = policy.pin_fingerprints.contains(&facts.fingerprint);
        verdict.pinned_fingerprint = Some(matches);
        if !matches {
            verdict.reason = "fp-pin-mismatch";
            return verdict;
        }
    }
    (verdict.accepted, verdict.reason) = match (policy.mode, trusted) {
        (TrustMode::Open, _) => (true, "open-policy"),
        (TrustMode::Allowlist, None) => (false, "trusted-dir-unreadable"),
        (TrustMode::Allowlist, Some(set)) if set.contains(&facts.fingerprint) => {
            (true, "present-in-allowlist")
        }
        (TrustMode::Allowlist, Some(_)) => (false, "not-in-allowlist"),
    };
    verdict
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

    fn judged(policy: &TrustPolicy, trusted: &[&str], now: i64) -> (bool, &'static str) {
        let set = trusted.iter().map(ToString::to_string).collect();
        let verdict = judge(policy, Some(&facts()), Some(&set), "My Realm", now);
        (verdict.accepted, verdict.reason)
    }

    #[test]
    fn the_allowlist_lets_in_whom_it_names_and_nobody_else() {
        let allow = policy(TrustMode::Allowlist);
        assert_eq!(judged(&allow, &["aa"], 150), (true, "present-in-allowlist"));
        assert_eq!(judged(&allow, &["bb"], 150), (false, "not-in-allowlist"));
        assert!(
            !judge(&allow, Some(&facts()), None, "", 150).accepted,
            "an unreadable directory trusts nobody"
        );
        assert!(!judge(&allow, None, Some(&BTreeSet::new()), "", 150).accepted, "no certificate, no entry");
    }

    #[test]
    fn dates_count_in_every_mode_unless_the_operator_says_otherwise() {
        for mode in [TrustMode::Open, TrustMode::Allowlist] {
            assert_eq!(judged(&policy(mode), &["aa"], 201), (false, "time-invalid"));
            assert_eq!(judged(&policy(mode), &["aa"], 99), (false, "time-invalid"));
            let lax = TrustPolicy { reject_expired: false, ..policy(mode) };
            assert!(judged(&lax, &["aa"], 201).0);
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
        assert_eq!(judge(&bound, Some(&facts()), None, "Elsewhere", 150).reason, "realm-subject-mismatch");
        assert!(!judge(&bound, None, None, "My Realm", 150).accepted);
    }
}
