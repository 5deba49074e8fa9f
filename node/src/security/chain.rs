//! Whether a certificate comes from an authority that the operator trusts: a path to one of its issuers, signatures, dates, purposes
//! and revocation, all decided by webpki. The certificates are a stranger's and hostile; the directories are the operator's, and
//! what cannot be read there lets nobody in.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use webpki::{
    anchor_from_trusted_cert, CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
    ALL_VERIFICATION_ALGS,
};

/// Largest file that is read, bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Files in one directory.
const MAX_FILES: usize = 1000;
/// Certificates of a peer beside its own.
const MAX_INTERMEDIATES: usize = 8;

/// Where authorities and their revocation lists are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorities {
    /// Certificates of issuers: `*.pem`, `*.crt`, `*.cer`, `*.der`.
    pub issuers: PathBuf,
    /// Revocation lists: `*.pem`, `*.crl`, `*.der`.
    pub lists: Vec<PathBuf>,
    /// A certificate that signed itself is as good as one with a path; only where keys are trusted one by one as well.
    pub self_signed: bool,
}

/// What the peer is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It answered us: `serverAuth`.
    Server,
    /// It dialed us: `clientAuth`.
    Client,
}

/// Where a path ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// At an authority of the operator's, which vouches for the names in the certificate.
    Authority,
    /// At the certificate itself: nobody vouches for what it says.
    Itself,
}

/// Why a certificate has no path.
pub type Broken = &'static str;

fn files(dir: &Path, extensions: &[&str]) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut read = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase);
        if !extension.is_some_and(|end| extensions.contains(&end.as_str())) {
            continue;
        }
        if read.len() >= MAX_FILES || fs::metadata(&path)?.len() > MAX_FILE {
            return Err(io::Error::other(format!("{}: too many or too large files", path.display())));
        }
        let bytes = fs::read(&path)?;
        read.push((path, bytes));
    }
    Ok(read)
}

/// The objects of a file, PEM or one DER.
fn objects<T: PemObject>(bytes: &[u8], der: impl FnOnce(Vec<u8>) -> T) -> Result<Vec<T>, Error> {
    if bytes.starts_with(b"-----") || bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        return T::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(|_| Error::BadDer);
    }
    Ok(vec![der(bytes.to_vec())])
}

fn issuers(dir: &Path) -> Result<Vec<CertificateDer<'static>>, Broken> {
    let mut all = Vec::new();
    for (path, bytes) in files(dir, &["pem", "crt", "cer", "der"]).map_err(|error| unreadable(dir, &error))? {
        let found = objects(&bytes, CertificateDer::from).map_err(|error| unreadable(&path, &error))?;
        all.extend(found);
    }
    Ok(all)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Broken {
    tracing::error!("certificates of authorities: {}: {error}", path.display());
    "authorities-unreadable"
}

fn lists(dirs: &[PathBuf]) -> Result<Vec<CertRevocationList<'static>>, Broken> {
    let mut all = Vec::new();
    for dir in dirs {
        for (path, bytes) in files(dir, &["pem", "crl", "der"]).map_err(|error| unreadable(dir, &error))? {
            let found = objects(&bytes, CertificateRevocationListDer::from)
                .map_err(|error| unreadable(&path, &error))?;
            for list in found {
                let list = OwnedCertRevocationList::from_der(list.as_ref())
                    .map_err(|error| unreadable(&path, &error))?;
                all.push(list.into());
            }
        }
    }
    Ok(all)
}

/// Whether these can say anything: an error says what is missing. Reads the directories: not for a worker.
pub fn usable(of: &Authorities) -> Result<(), String> {
    let unreadable =
        |_| "they, or their revocation lists, cannot be read; the log says which file".to_owned();
    lists(&of.lists).map_err(unreadable)?;
    let issuers = issuers(&of.issuers).map_err(unreadable)?;
    let anchors = issuers.iter().filter(|issuer| anchor_from_trusted_cert(issuer).is_ok()).count();
    if anchors == 0 && !of.self_signed {
        return Err(format!("{}: no certificate of an authority is there", of.issuers.display()));
    }
    Ok(())
}

/// Checks a peer's certificates, its own first, at this time (seconds since 1970). Reads the directories: not for a worker.
pub fn check(
    authorities: &Authorities,
    certificates: &[CertificateDer<'_>],
    purpose: Purpose,
    now: i64,
) -> Result<Anchor, Broken> {
    let Some((own, others)) = certificates.split_first() else { return Err("no-certificate") };
    if others.len() > MAX_INTERMEDIATES {
        return Err("chain-too-long");
    }
    let issuers = issuers(&authorities.issuers)?;
    let lists = lists(&authorities.lists)?;
    match path(own, others, &issuers, &lists, purpose, now) {
        Err("unknown-issuer") if is_self_signed(own) => {
            if !authorities.self_signed {
                return Err("self-signed");
            }
            // Its own signature, dates and purposes hold, or it is nobody's.
            path(own, &[], std::slice::from_ref(own), &lists, purpose, now).map(|()| Anchor::Itself)
        }
        checked => checked.map(|()| Anchor::Authority),
    }
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    use x509_parser::prelude::FromDer;
    x509_parser::prelude::X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer())
}

fn path(
    own: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    issuers: &[CertificateDer<'_>],
    lists: &[CertRevocationList<'_>],
    purpose: Purpose,
    now: i64,
) -> Result<(), Broken> {
    let leaf = EndEntityCert::try_from(own).map_err(|_| "certificate-unparsed")?;
    let anchors: Vec<_> = issuers.iter().filter_map(|issuer| anchor_from_trusted_cert(issuer).ok()).collect();
    if anchors.is_empty() {
        return Err(if is_self_signed(own) { "unknown-issuer" } else { "no-authorities" });
    }
    let lists: Vec<&CertRevocationList<'_>> = lists.iter().collect();
    let revocation = match RevocationOptionsBuilder::new(&lists) {
        Err(_) => None, // there are none
        Ok(options) => Some(
            options
                .with_depth(RevocationCheckDepth::Chain)
                // An authority without a list revokes nothing; one whose list is too old is not believed.
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build(),
        ),
    };
    let usage = match purpose {
        Purpose::Server => KeyUsage::server_auth(),
        Purpose::Client => KeyUsage::client_auth(),
    };
    let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    let checked =
        leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, others, time, usage, revocation, None);
    checked.map(drop).map_err(|error| match error {
        Error::CertRevoked => "revoked",
        Error::CertExpired { .. } => "expired",
        Error::CertNotValidYet { .. } => "not-yet-valid",
        Error::CrlExpired { .. } => "revocation-list-expired",
        Error::UnknownIssuer => "unknown-issuer",
        Error::RequiredEkuNotFoundContext(_) => "wrong-purpose",
        Error::CaUsedAsEndEntity => "authority-as-peer",
        Error::InvalidSignatureForPublicKey => "bad-signature",
        _ => "chain-invalid",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa,
        Issuer, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    };
    use time::{Duration as Span, OffsetDateTime};

    struct Authority {
        params: CertificateParams,
        key: KeyPair,
        pem: String,
    }

    fn authority(name: &str) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("signed").pem();
        Authority { params, key, pem }
    }

    impl Authority {
        fn issue(&self, serial: u64, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(vec![]).expect("parameters");
            params.distinguished_name.push(rcgen::DnType::CommonName, "node-b");
            params.serial_number = Some(SerialNumber::from(serial));
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            change(&mut params);
            let issuer = Issuer::from_params(&self.params, &self.key);
            params.signed_by(&key, &issuer).expect("signed").der().clone()
        }

        fn revoke(&self, serial: u64, next: OffsetDateTime) -> String {
            let now = OffsetDateTime::now_utc();
            let params = CertificateRevocationListParams {
                this_update: now - Span::days(2),
                next_update: next,
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: vec![RevokedCertParams {
                    serial_number: SerialNumber::from(serial),
                    revocation_time: now - Span::days(1),
                    reason_code: None,
                    invalidity_date: None,
                }],
                key_identifier_method: rcgen::KeyIdMethod::Sha256,
            };
            params
                .signed_by(&Issuer::from_params(&self.params, &self.key))
                .expect("signed")
                .pem()
                .expect("PEM")
        }
    }

    #[test]
    fn a_path_to_an_authority_is_let_in_and_each_way_of_having_none_has_its_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let authorities = Authorities {
            issuers: dir.path().join("issuers"),
            lists: vec![dir.path().join("lists")],
            self_signed: false,
        };
        let (ours, other) = (authority("ours"), authority("other"));
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let check = |certificates: &[CertificateDer<'_>], purpose| {
            super::check(&authorities, certificates, purpose, now)
        };
        let good = ours.issue(1, |_| {});
        assert_eq!(check(std::slice::from_ref(&good), Purpose::Client), Err("no-authorities"));
        fs::create_dir_all(&authorities.issuers).expect("a directory");
        fs::write(authorities.issuers.join("ours.pem"), &ours.pem).expect("written");
        assert_eq!(check(std::slice::from_ref(&good), Purpose::Client), Ok(Anchor::Authority));
        assert_eq!(check(std::slice::from_ref(&good), Purpose::Server), Ok(Anchor::Authority));
        assert_eq!(check(&[], Purpose::Server), Err("no-certificate"));
        assert_eq!(check(&[other.issue(1, |_| {})], Purpose::Client), Err("unknown-issuer"));
        let late = ours.issue(2, |params| params.not_after = OffsetDateTime::now_utc() - Span::days(1));
        assert_eq!(check(&[late], Purpose::Client), Err("expired"));
        let early = ours.issue(3, |params| params.not_before = OffsetDateTime::now_utc() + Span::days(1));
        assert_eq!(check(&[early], Purpose::Client), Err("not-yet-valid"));
        let server_only =
            ours.issue(4, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        assert_eq!(check(std::slice::from_ref(&server_only), Purpose::Server), Ok(Anchor::Authority));
        assert_eq!(check(&[server_only], Purpose::Client), Err("wrong-purpose"));
        let key = KeyPair::generate().expect("a key");
        let own = CertificateParams::new(vec![]).and_then(|params| params.self_signed(&key)).expect("signed");
        assert_eq!(check(&[own.der().clone()], Purpose::Server), Err("self-signed"));
        let lax = Authorities { self_signed: true, ..authorities.clone() };
        assert_eq!(super::check(&lax, &[own.der().clone()], Purpose::Server, now), Ok(Anchor::Itself));
        assert_eq!(check(&vec![good.clone(); 20], Purpose::Server), Err("chain-too-long"));
        // Revocation.
        fs::create_dir_all(&authorities.lists[0]).expect("a directory");
        let list = authorities.lists[0].join("ours.crl");
        fs::write(&list, ours.revoke(1, OffsetDateTime::now_utc() + Span::days(1))).expect("written");
        assert_eq!(check(std::slice::from_ref(&good), Purpose::Client), Err("revoked"));
        assert_eq!(
            check(&[ours.issue(9, |_| {})], Purpose::Client),
            Ok(Anchor::Authority),
            "not every one is"
        );
        fs::write(&list, ours.revoke(7, OffsetDateTime::now_utc() - Span::days(1))).expect("written");
        assert_eq!(check(std::slice::from_ref(&good), Purpose::Client), Err("revocation-list-expired"));
        fs::write(&list, "garbage").expect("written");
        assert_eq!(check(&[good], Purpose::Client), Err("authorities-unreadable"));
    }
}
