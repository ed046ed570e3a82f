//! The account that runs PostgreSQL, and a home that it can reach.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::{User, geteuid};

/// The system account that runs PostgreSQL when we are root, as which it refuses to run.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// Nothing unless we are root.
    pub(super) fn needed() -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        match User::from_name("postgres")? {
            Some(user) => Ok(Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() })),
            None => bail!(
                "PostgreSQL does not run as root, and there is no account `postgres` to run it; \
                 run this as an ordinary user"
            ),
        }
    }

    /// Asks the kernel rather than reading permission bits, which would miss access lists.
    fn can_use(&self, dir: &Path) -> bool {
        let mut test = Command::new("test");
        test.arg("-w").arg(dir).current_dir("/").uid(self.uid).gid(self.gid).stdin(Stdio::null());
        test.status().is_ok_and(|status| status.success())
    }
}

/// The home of the server, owned by its account. When the account cannot reach our directory (a checkout
/// below `/root`, say), the home is a link to a directory in `/var/tmp`.
pub(super) fn home(home: &Path, identity: &str, account: Option<&Account>) -> Result<PathBuf> {
    let Some(account) = account else {
        fs::create_dir_all(home).with_context(|| format!("failed to create {}", home.display()))?;
        return Ok(home.canonicalize()?);
    };
    if !home.is_symlink() {
        own(home, account)?;
        if account.can_use(home) {
            return Ok(home.canonicalize()?);
        }
        let context =
            || format!("the account `postgres` cannot reach {}, which already holds other files", home.display());
        fs::remove_dir(home).with_context(context)?;
        link_to_new_directory(home, &Path::new("/var/tmp").join(identity), account)?;
    }
    let elsewhere = fs::read_link(home)?;
    own(&elsewhere, account)?;
    if !account.can_use(&elsewhere) {
        bail!("the account `postgres` can use neither {} nor {}", home.display(), elsewhere.display());
    }
    Ok(elsewhere)
}

/// Existing data there is unused: the link to it has been deleted.
fn link_to_new_directory(link: &Path, elsewhere: &Path, account: &Account) -> Result<()> {
    own(elsewhere, account)?;
    fs::remove_dir_all(elsewhere).with_context(|| format!("failed to empty {}", elsewhere.display()))?;
    symlink(elsewhere, link).with_context(|| format!("failed to create {}", link.display()))
}

/// Creates a directory for the account alone. A directory of another account is refused, because
/// every account may write to `/var/tmp`.
fn own(dir: &Path, account: &Account) -> Result<()> {
    let context = || format!("failed to prepare {}", dir.display());
    match fs::create_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(context);
        }
        _ => {}
    }
    let found = dir.symlink_metadata().with_context(context)?;
    if !found.is_dir() || ![0, account.uid].contains(&found.uid()) {
        bail!("{} belongs to another account; run this as that account, or delete it", dir.display());
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).with_context(context)?;
    chown(dir, Some(account.uid), Some(account.gid)).with_context(context)
}
