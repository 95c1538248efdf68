//! `certs`: an authority for a cluster, and what it issues. Files, and nothing else: no server is asked.
//!
//! Not here: what stands in a certificate (`peer::authority`).

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{failure::Failure, output::notice};
use crate::peer::{
    authority::{self, Authority, Issued},
    identity::{Identity, is_name},
};

const AUTHORITY: &str = "ca";
const AUTHORITY_DAYS: u32 = 3650;
const CERTIFICATE_DAYS: u32 = 365;

/// Make certificates for the nodes of a cluster and for its administrators.
#[derive(Debug, clap::Args)]
pub struct Certs {
    #[command(subcommand)]
    command: CertsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum CertsCommand {
    /// Make an authority: ca.pem, which all nodes need, and ca-key.pem, which none needs: keep it elsewhere
    Ca(Place),
    /// Make a node's certificate: NAME.pem and NAME-key.pem
    Node {
        /// The node's name, its `databroker_cluster_node_id`
        #[arg(value_parser = name)]
        name: String,
        /// A host's name or address to put into it, for tools that look for one; nodes do not
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Make an administrator's certificate, for `databroker cluster`: admin.pem and admin-key.pem
    Admin(Place),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// Folder of the authority, and of what is made
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The cluster's name, its `databroker_cluster_name`
    #[arg(long, value_name = "NAME", default_value = "databroker", value_parser = name)]
    cluster: String,
    /// Days after which it expires [default: 3650 for an authority, else 365]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    validity: Option<u32>,
}

fn name(text: &str) -> Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err("letters, digits, `-`, `_` and `.` are wanted".to_owned()) }
}

impl Certs {
    /// Makes the files.
    ///
    /// # Errors
    /// When one of them is there already, or cannot be written.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            CertsCommand::Ca(place) => place.authority(),
            CertsCommand::Node { name, .. } if [AUTHORITY, "admin"].contains(&name.as_str()) => Err(Failure::Usage(
                format!("a node cannot be called `{name}` here: the files of that name belong to others"),
            )),
            CertsCommand::Node { name, hosts, place } => {
                place.issue(&name, &Identity::node(&place.cluster, &name), &hosts)
            }
            CertsCommand::Admin(place) => place.issue("admin", &Identity::admin(&place.cluster), &[]),
        }
    }
}

impl Place {
    fn valid_for(&self, days: u32) -> Duration {
        Duration::from_secs(u64::from(self.validity.unwrap_or(days)) * 24 * 3600)
    }

    fn authority(&self) -> Result<(), Failure> {
        let (_, issued) = Authority::make(&self.cluster, self.valid_for(AUTHORITY_DAYS)).map_err(unmade)?;
        self.write(AUTHORITY, &issued)
    }

    fn issue(&self, name: &str, identity: &Identity, hosts: &[String]) -> Result<(), Failure> {
        let (certificate, key) = self.files(AUTHORITY);
        let authority = Authority::from_pem(&read(&certificate)?, &read(&key)?).map_err(unmade)?;
        let issued = authority.issue(identity, hosts, Some(self.valid_for(CERTIFICATE_DAYS))).map_err(unmade)?;
        self.write(name, &issued)
    }

    fn files(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}-key.pem")))
    }

    fn write(&self, name: &str, issued: &Issued) -> Result<(), Failure> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|source| Failure::Write { file: self.dir.clone(), source })?;
        let (certificate, key) = self.files(name);
        if let Some(there) = [&certificate, &key].into_iter().find(|file| file.exists()) {
            return Err(Failure::Failed(format!("{} is there already: it is not overwritten", there.display())));
        }
        create(&key, 0o600, &issued.key_pem())?;
        create(&certificate, 0o644, &issued.certificate_pem)?;
        notice(&format!("made {} and {}", certificate.display(), key.display()));
        Ok(())
    }
}

/// Writes a new file that only those see who may.
pub(super) fn create(file: &Path, mode: u32, text: &str) -> Result<(), Failure> {
    let created = OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    created
        .and_then(|mut created| created.write_all(text.as_bytes()).and_then(|()| created.sync_all()))
        .map_err(|source| Failure::Write { file: file.to_owned(), source })
}

fn read(file: &Path) -> Result<String, Failure> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Failure::Usage(format!(
            "there is no {}: make an authority first, with `databroker certs ca`",
            file.display()
        ))),
        Err(source) => Err(Failure::Read { file: file.to_owned(), source }),
    }
}

fn unmade(error: authority::Error) -> Failure {
    Failure::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use clap::Parser;

    use super::*;
    use crate::{config::PeerFiles, peer::material::Material};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        certs: Certs,
    }

    fn certs(dir: &Path, args: &[&str]) -> Result<(), Failure> {
        let dir = dir.display().to_string();
        Line::parse_from([&["x"], args, &["--dir", &dir, "--cluster", "c"]].concat()).certs.run()
    }

    #[test]
    fn what_is_made_can_be_used_is_private_and_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new");
        assert!(certs(&dir, &["node", "a"]).unwrap_err().to_string().contains("databroker certs ca"));
        certs(&dir, &["ca"]).unwrap();
        certs(&dir, &["node", "a", "--host", "localhost", "--host", "::1"]).unwrap();
        certs(&dir, &["admin", "--validity", "2"]).unwrap();
        for (name, identity) in [("a", Identity::node("c", "a")), ("admin", Identity::admin("c"))] {
            let [ca, certificate, key] =
                ["ca.pem", &format!("{name}.pem"), &format!("{name}-key.pem")].map(|file| dir.join(file));
            assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
            Material::from_files(&PeerFiles { ca, certificate, key }, identity).unwrap();
        }
        for again in [&["ca"][..], &["node", "a"], &["admin"]] {
            assert!(certs(&dir, again).unwrap_err().to_string().contains("is not overwritten"));
        }
        assert!(certs(&dir, &["node", "ca"]).is_err());
    }
}
