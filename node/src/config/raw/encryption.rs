//! `[encryption]` and whom to trust, from what was written to what holds. Fails closed: what is written wrongly, or promises what this
//! release does not have, is an error with its place, and never plaintext or an open door.

use super::{Raw, RawEncryption, RawPaths, RawTrust};
use crate::config::{ConfigError, Encryption, TrustMode, TrustPolicy};
use crate::security::chain::Authorities;
use serde_spanned::Spanned;
use std::path::PathBuf;

impl Raw {
    pub(super) fn encryption(
        &self,
        without_effect: &mut Vec<String>,
    ) -> Result<Option<Encryption>, ConfigError> {
        let none = RawEncryption::default();
        let table = self.encryption.as_ref().map_or(&none, Spanned::get_ref);
        if table.enabled == Some(false) {
            return Ok(None);
        }
        if let Some(backend) = &table.backend {
            match backend.get_ref().as_str() {
                "tls" => {}
                "noise" => {
                    return self.wrong(backend, "this release has no Noise", "use \"tls\", the default")
                }
                "none" | "plaintext" => {
                    return self.wrong(
                        backend,
                        "encryption is on, but its backend is off",
                        "to go without, write enabled = false",
                    )
                }
                _ => return self.wrong(backend, "no such backend", "use \"tls\", the default"),
            }
        }
        if let Some(noise) = &table.noise {
            return self.wrong(noise, "this release has no Noise", "remove the table; TLS is the default");
        }
        let no_paths = RawPaths::default();
        let paths = table.paths.as_ref().unwrap_or(&no_paths);
        let written = table.trust_policy.as_ref().and_then(|trust| trust.accept_self_signed.as_ref());
        let self_signed =
            written.map_or(table.accept_self_signed.unwrap_or(false), |written| *written.get_ref());
        let policy = self.trust(table)?;
        if self_signed && policy.mode == TrustMode::Ca {
            let place = written.map_or(0..0, Spanned::span);
            return Err(self.origin.error(
                place,
                "mode \"ca\" cannot accept self-signed certificates: everybody can make one",
                Some("remove accept_self_signed, or use mode = \"allowlist\" with enforce_ca_chain"),
            ));
        }
        if !policy.needs_chain() {
            if table.accept_self_signed.is_some() {
                without_effect
                    .push("encryption.accept_self_signed: trust goes by key, see trust_policy.mode".into());
            }
            if paths.issuer_cert_dir.is_some()
                || paths.trusted_crl_dir.is_some()
                || paths.issuer_crl_dir.is_some()
            {
                without_effect.push(
                    "encryption.paths: authorities and revocation lists are for mode = \"ca\" or enforce_ca_chain"
                        .into(),
                );
            }
        }
        let mtls = table.mtls.as_ref().is_none_or(|mtls| *mtls.get_ref());
        if let (false, true, Some(written)) = (mtls, policy.mode.needs_certificates(), &table.mtls) {
            return self.wrong(
                written,
                format!(
                    "mode {:?} needs certificates from both sides, so it cannot go with mtls = false",
                    policy.mode.word()
                ),
                "remove mtls = false, or write mode = \"open\" and accept that anybody may connect",
            );
        }
        if policy.mode == TrustMode::Allowlist && policy.store_observed {
            without_effect.push(
                "encryption.trust_policy.store_new_certs: an allowlist keeps no certificates; use mode = \"observe\""
                    .into(),
            );
        }
        let pki = |path: &Option<PathBuf>, default: &str| path.clone().unwrap_or_else(|| default.into());
        let observed =
            table.trust_policy.as_ref().and_then(|trust| trust.paths.as_ref()?.observed_dir.clone());
        Ok(Some(Encryption {
            mtls,
            own_certificate: pki(&paths.own_certificate, "pki/own/cert.pem"),
            own_private_key: pki(&paths.own_private_key, "pki/own/key.pem"),
            trusted_dir: pki(&paths.trusted_cert_dir, "pki/trusted/certs"),
            observed_dir: observed.unwrap_or_else(|| "pki/observed/certs".into()),
            rejected_dir: paths.rejected_dir.clone(),
            authorities: Authorities {
                issuers: pki(&paths.issuer_cert_dir, "pki/issuers/certs"),
                lists: [&paths.trusted_crl_dir, &paths.issuer_crl_dir]
                    .into_iter()
                    .flatten()
                    .cloned()
                    .collect(),
                self_signed,
            },
            policy,
        }))
    }

    fn trust(&self, table: &RawEncryption) -> Result<TrustPolicy, ConfigError> {
        let none = RawTrust::default();
        let trust = table.trust_policy.as_ref().unwrap_or(&none);
        let mode = match trust.mode.as_ref().map(|mode| (mode, mode.get_ref().as_str())) {
            // Nothing written must not mean that everybody is welcome.
            None | Some((_, "allowlist")) => TrustMode::Allowlist,
            Some((_, "open")) => TrustMode::Open,
            Some((_, "observe" | "record" | "quarantine")) => TrustMode::Observe,
            Some((_, "tofu")) => TrustMode::Tofu,
            Some((_, "hybrid")) => TrustMode::Hybrid,
            Some((_, "ca")) => TrustMode::Ca,
            Some((mode, _)) => {
                return self.wrong(
                    mode,
                    "no such trust mode",
                    "use \"allowlist\", \"ca\", \"tofu\", \"observe\", \"open\" or \"hybrid\"",
                )
            }
        };
        if let Some(algo) = trust.pin_fp_algo.as_ref().filter(|algo| algo.get_ref() != "sha256") {
            return self.wrong(
                algo,
                "fingerprints are SHA-256 of the public key",
                "remove the key, or write \"sha256\"",
            );
        }
        let store_observed =
            match trust.store_new_certs.as_ref().map(|store| (store, store.get_ref().as_str())) {
                None | Some((_, "none")) => false,
                Some((_, "observed")) => true,
                Some((store, _)) => {
                    return self.wrong(store, "no such place", "use \"none\" or \"observed\"")
                }
            };
        let mut pins = Vec::new();
        for pin in &trust.pin_fingerprints {
            let text = pin.get_ref().trim().to_ascii_lowercase();
            if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                return self.wrong(
                    pin,
                    "not a fingerprint",
                    "it has 64 hex digits; `thenodes cert fingerprint` prints one",
                );
            }
            pins.push(text);
        }
        Ok(TrustPolicy {
            mode,
            reject_expired: trust.reject_expired.unwrap_or(true),
            reject_before_valid: trust.reject_before_valid.unwrap_or(true),
            realm_subject_binding: trust.realm_subject_binding.unwrap_or(false),
            pin_subjects: trust.pin_subjects.clone(),
            pin_fingerprints: pins,
            store_observed,
            enforce_chain: trust.enforce_ca_chain.unwrap_or(false),
        })
    }
}
