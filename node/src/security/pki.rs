//! Own certificate and key, and what stands in a certificate. Private keys are made with mode 0600 and refused if others
//! may read them.

use crate::config::Encryption;
use crate::text::hex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use thenodes::realms::RealmInfo;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Validity of a certificate that we make, days. Trust goes by key; the date only bounds a forgotten one.
pub const DEFAULT_DAYS: u32 = 3650;
/// Largest certificate or key file that is read, bytes.
const MAX_PEM: u64 = 1024 * 1024;

/// Something about a key or certificate file.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Making a certificate failed.
    #[error("making a certificate: {0}")]
    Make(String),
}

pub(super) fn at(path: &Path, what: impl ToString) -> PkiError {
    PkiError::File { path: path.into(), what: what.to_string() }
}

/// Own chain and key.
pub struct Own {
    /// Certificates, own first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Key.
    pub key: PrivateKeyDer<'static>,
    /// Fingerprint of the own certificate.
    pub fingerprint: String,
}

/// What is known of a certificate, for a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// SHA-256 of the SubjectPublicKeyInfo, lower-case hex. Of the whole certificate, if that cannot be parsed.
    pub fingerprint: String,
    /// Subject for people, if it can be parsed.
    pub subject: Option<String>,
    /// Common name in the subject, if there is one.
    pub common_name: Option<String>,
    /// Validity, seconds since 1970, if it can be parsed.
    pub valid: Option<(i64, i64)>,
}

/// Reads what a verdict needs from a certificate of a stranger.
pub fn facts(certificate: &[u8]) -> CertificateFacts {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => CertificateFacts {
            fingerprint: hex(&Sha256::digest(parsed.tbs_certificate.subject_pki.raw)),
            subject: Some(parsed.subject().to_string()),
            common_name: parsed
                .subject()
                .iter_common_name()
                .next()
                .and_then(|name| Some(name.as_str().ok()?.to_owned())),
            valid: Some((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp())),
        },
        Err(_) => CertificateFacts {
            fingerprint: hex(&Sha256::digest(certificate)),
            subject: None,
            common_name: None,
            valid: None,
        },
    }
}

/// Reads own certificate and key. Both must exist; see [`ensure`].
pub fn load(encryption: &Encryption) -> Result<Own, PkiError> {
    let (cert, key) = (&encryption.own_certificate, &encryption.own_private_key);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|e| at(cert, format!("no PEM certificate: {e}")))?;
    let first = chain.first().ok_or_else(|| at(cert, "holds no PEM certificate"))?;
    let fingerprint = facts(first).fingerprint;
    let about = fs::metadata(key).map_err(|e| at(key, e))?;
    let mode = about.permissions().mode() & 0o777;
    // systemd gives credentials to a service as 0400 or 0440 below its own directory, which is private.
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|dir| key.starts_with(dir));
    if mode & 0o077 != 0 && !credential {
        return Err(at(key, format!("mode {mode:04o}: others may read this private key; run chmod 600")));
    }
    let key_der = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|e| at(key, format!("no PEM private key (PKCS#8, PKCS#1 or SEC1): {e}")))?;
    Ok(Own { chain, key: key_der, fingerprint })
}

/// Makes certificate and key if there are none. True if they were made. One without the other is an error: which of them
/// is right, only the operator knows.
pub fn ensure(encryption: &Encryption, node_id: &str, realm: &RealmInfo) -> Result<bool, PkiError> {
    let (cert, key) = (&encryption.own_certificate, &encryption.own_private_key);
    match (cert.exists(), key.exists()) {
        (true, true) => Ok(false),
        (true, false) => Err(at(
            key,
            format!("missing, but {} exists; restore the key or remove the certificate", cert.display()),
        )),
        (false, true) => Err(at(
            cert,
            format!("missing, but {} exists; restore the certificate or remove the key", key.display()),
        )),
        (false, false) => make(cert, key, node_id, realm, KeyType::P256, DEFAULT_DAYS, false).map(|_| true),
    }
}

/// Kinds of keys that we make. All of them prove possession in TLS 1.2 and 1.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA on P-256, as upstream's.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

/// Makes a self-signed certificate: the node id as common name, the realm as organisation. Returns its fingerprint.
pub fn make(
    cert: &Path,
    key: &Path,
    node_id: &str,
    realm: &RealmInfo,
    kind: KeyType,
    days: u32,
    force: bool,
) -> Result<String, PkiError> {
    let failed = |e: rcgen::Error| PkiError::Make(e.to_string());
    let pair = rcgen::KeyPair::generate_for(match kind {
        KeyType::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyType::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        KeyType::Ed25519 => &rcgen::PKCS_ED25519,
    })
    .map_err(failed)?;
    let san = format!("realm-{}.thenodes", realm.canonical_code());
    let mut params = rcgen::CertificateParams::new(vec![san]).map_err(failed)?;
    let mut name = rcgen::DistinguishedName::new();
    name.push(rcgen::DnType::CommonName, node_id);
    name.push(rcgen::DnType::OrganizationName, realm.name.as_str());
    params.distinguished_name = name;
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1); // clocks differ
    params.not_after = now + Duration::days(i64::from(days));
    let certificate = params.self_signed(&pair).map_err(failed)?;
    // The key first: a certificate without its key would stop the next start.
    write(key, pair.serialize_pem().as_bytes(), 0o600, force)?;
    write(cert, certificate.pem().as_bytes(), 0o644, force)?;
    Ok(facts(certificate.der()).fingerprint)
}

fn write(path: &Path, text: &[u8], mode: u32, force: bool) -> Result<(), PkiError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(|e| at(dir, e))?;
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(dir)
        .map_err(|e| at(dir, e))?;
    file.write_all(text).and_then(|()| file.as_file().sync_all()).map_err(|e| at(path, e))?;
    let done = if force { file.persist(path).map(drop) } else { file.persist_noclobber(path).map(drop) };
    done.map_err(|e| match e.error.kind() {
        io::ErrorKind::AlreadyExists => at(path, "exists already; use --force to replace it"),
        _ => at(path, e.error),
    })
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    let about = fs::metadata(path).map_err(|e| at(path, e))?;
    if !about.is_file() || about.len() > MAX_PEM {
        return Err(at(path, format!("no file of at most {MAX_PEM} bytes")));
    }
    fs::read(path).map_err(|e| at(path, e))
}

/// Fingerprints of the certificates of a PEM file.
pub fn fingerprints(file: &Path) -> Result<Vec<String>, PkiError> {
    let list: Vec<String> = CertificateDer::pem_slice_iter(&read(file)?)
        .map(|certificate| Ok(facts(&certificate.map_err(|e| at(file, e))?).fingerprint))
        .collect::<Result<_, PkiError>>()?;
    if list.is_empty() {
        return Err(at(file, "holds no PEM certificate"));
    }
    Ok(list)
}

/// What stands in a certificate, for people. Texts are the author's of the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fingerprint: String,
    /// Subject.
    pub subject: String,
    /// Issuer.
    pub issuer: String,
    /// First moment of validity.
    pub not_before: String,
    /// Last moment of validity.
    pub not_after: String,
    /// Algorithm of the key, with its curve or size where they are known.
    pub key: String,
    /// Alternative names.
    pub names: Vec<String>,
    /// What the key may be used for: `server`, `client`, or any if there is no word about it.
    pub uses: Vec<String>,
    /// Issuer and subject are the same; whether the signature is its own is not said.
    pub self_signed: bool,
}

/// Looks at the certificates of a PEM file.
pub fn describe(file: &Path) -> Result<Vec<Description>, PkiError> {
    let mut list = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&read(file)?) {
        let der = certificate.map_err(|e| at(file, e))?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|e| at(file, format!("no X.509 certificate: {e}")))?;
        list.push(describe_one(&der, &parsed));
    }
    if list.is_empty() {
        return Err(at(file, "holds no PEM certificate"));
    }
    Ok(list)
}

fn describe_one(der: &[u8], parsed: &X509Certificate<'_>) -> Description {
    use x509_parser::extensions::GeneralName;
    use x509_parser::public_key::PublicKey;
    let info = &parsed.tbs_certificate.subject_pki;
    let key = match info.parsed() {
        Ok(PublicKey::RSA(key)) => format!("RSA, {} bits", key.key_size()),
        Ok(PublicKey::EC(point)) => format!("ECDSA, {} bits", point.key_size()),
        Ok(_) | Err(_) if info.algorithm.algorithm.to_id_string() == "1.3.101.112" => "Ed25519".to_owned(),
        Ok(_) | Err(_) => info.algorithm.algorithm.to_id_string(),
    };
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.map_or_else(Vec::new, |names| {
        let name = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(text) => (*text).to_owned(),
            other => other.to_string(),
        };
        names.value.general_names.iter().map(name).collect()
    });
    let uses = match parsed.extended_key_usage().ok().flatten() {
        None => vec!["any".to_owned()],
        Some(uses) => {
            [("server", uses.value.server_auth), ("client", uses.value.client_auth), ("any", uses.value.any)]
                .into_iter()
                .filter(|(_, may)| *may)
                .map(|(word, _)| word.to_owned())
                .collect()
        }
    };
    Description {
        fingerprint: facts(der).fingerprint,
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        not_before: parsed.validity().not_before.to_string(),
        not_after: parsed.validity().not_after.to_string(),
        key,
        names,
        uses,
        self_signed: parsed.subject() == parsed.issuer(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realm() -> RealmInfo {
        RealmInfo::new("Test Realm", "1")
    }

    #[test]
    fn a_certificate_is_valid_for_the_days_that_were_asked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        for days in [1, 9, 400] {
            let (cert, key) =
                (dir.path().join(format!("{days}.pem")), dir.path().join(format!("{days}.key")));
            make(&cert, &key, "node-a", &realm(), KeyType::P256, days, false).expect("made");
            let facts = facts(&CertificateDer::from_pem_file(&cert).expect("PEM"));
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
            let (from, until) = facts.valid.expect("dates");
            let now = now.as_secs() as i64;
            let off = until - now - i64::from(days) * 86_400;
            assert!(from <= now && off.abs() < 600, "{days} days: {off} s off");
        }
    }

    #[test]
    fn a_certificate_names_node_and_realm_and_its_key_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cert, key) = (dir.path().join("own/cert.pem"), dir.path().join("own/key.pem"));
        let fingerprint = make(&cert, &key, "node-a", &realm(), KeyType::P256, 1, false).expect("made");
        assert_eq!(fs::metadata(&key).expect("a key").permissions().mode() & 0o777, 0o600);
        let der = CertificateDer::from_pem_file(&cert).expect("PEM");
        let facts = facts(&der);
        assert_eq!(facts.fingerprint, fingerprint);
        let subject = facts.subject.expect("a subject");
        assert!(subject.contains("node-a") && subject.contains("Test Realm"), "{subject}");
        assert!(
            make(&cert, &key, "node-a", &realm(), KeyType::P256, 1, false).is_err(),
            "never over an existing key"
        );
    }

    #[test]
    fn each_kind_of_key_makes_a_certificate_that_says_what_was_asked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        for (kind, key) in [
            (KeyType::P256, "ECDSA, 256 bits"),
            (KeyType::P384, "ECDSA, 384 bits"),
            (KeyType::Ed25519, "Ed25519"),
        ] {
            let (cert, file) =
                (dir.path().join(format!("{kind:?}.pem")), dir.path().join(format!("{kind:?}.key")));
            let fingerprint = make(&cert, &file, "node-a", &realm(), kind, 7, false).expect("made");
            let list = describe(&cert).expect("it reads");
            let [of] = list.as_slice() else { panic!("{list:?}") };
            assert_eq!((of.fingerprint.as_str(), of.key.as_str()), (fingerprint.as_str(), key));
            assert_eq!(of.names, ["realm-test-realm.thenodes"]);
            assert_eq!(
                (of.uses.as_slice(), of.self_signed),
                (["server", "client"].map(String::from).as_slice(), true)
            );
            assert!(
                of.subject.contains("CN=node-a") && of.subject.contains("O=Test Realm"),
                "{}",
                of.subject
            );
        }
        assert!(describe(&dir.path().join("P256.key")).is_err(), "a key is no certificate");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = crate::config::Raw::default().validate().expect("valid");
        let mut encryption = config.encryption.expect("on");
        encryption.own_certificate = dir.path().join("c.pem");
        encryption.own_private_key = dir.path().join("k.pem");
        assert!(ensure(&encryption, "n", &realm()).expect("made"));
        assert!(load(&encryption).is_ok());
        fs::set_permissions(&encryption.own_private_key, fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = load(&encryption).err().expect("refused").to_string();
        assert!(error.contains("chmod 600"), "{error}");
        fs::remove_file(&encryption.own_private_key).expect("removed");
        assert!(ensure(&encryption, "n", &realm()).is_err(), "half a pair is never replaced silently");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_the_certificate_reader(bytes: Vec<u8>) {
            let _ = facts(&bytes);
        }
    }
}
