//! The keys that the database was written with. A wrong or missing key is reported at the start, and not by unreadable
//! values later.

use diesel::sql_types::Binary;
use domain::seal::{self, Required, SealError};

use super::{
    DbError, DbResult, Store, sealed,
    sql::{sql, statements},
};

/// The text that is sealed to test a key.
const CANARY: &str = "posthaste";
/// Its realm among fingerprints.
const REALM: &str = "seal_check";

/// Why the configured keys do not fit the database.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Values are encrypted, and no key is configured.
    #[error(
        "the database holds encrypted values and POSTHASTE_ENCRYPTION_KEY is not set: set it to the key they were written with"
    )]
    Missing,
    /// Values are encrypted with a key that is not configured.
    #[error(
        "the database holds values encrypted with another key: set POSTHASTE_ENCRYPTION_KEY to it, or name it in \
         POSTHASTE_ENCRYPTION_KEY_PREVIOUS and run `posthaste rotate-keys`"
    )]
    Wrong,
    /// Values may exist in the format that the settings refuse.
    #[error(
        "the database may hold values in the format of former versions: set POSTHASTE_ENCRYPTION_REQUIRED to true, run \
         `posthaste rotate-keys` until it says that nothing is left, then set it to bound"
    )]
    Unbound,
    /// The query failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

impl KeyError {
    /// The error as one of the database.
    pub fn into_db(self) -> DbError {
        match self {
            Self::Database(error) => error,
            Self::Missing | Self::Wrong => DbError::Sealed(SealError::UnknownKey),
            Self::Unbound => DbError::Sealed(SealError::Unbound),
        }
    }
}

/// [`CANARY`] encrypted with a key.
struct Canary {
    fingerprint: Vec<u8>,
    sealed: Vec<u8>,
}

impl Store {
    /// Refuses keys that cannot open the stored values. A new key is recorded before any value is written with it.
    pub async fn check_keys(&self) -> Result<(), KeyError> {
        let sealed = List {}.query().rows(self).await.map_err(KeyError::Database)?;
        if !sealed.is_empty() && !self.sealer().is_on() {
            return Err(KeyError::Missing);
        }
        // Former versions know only the former format. They may still run beside us, until a rotation shows that they
        // do not.
        self.sealer().set_bound(sealed.is_empty() || sealed.iter().any(|sealed| seal::is_bound(sealed)));
        // A finished rotation leaves one row, which is bound.
        if self.sealer().required() >= Required::Bound && !sealed.iter().all(|sealed| seal::is_bound(sealed)) {
            return Err(KeyError::Unbound);
        }
        let place = sealed::SEAL_CHECK.of_nobody();
        let opens = |sealed: Vec<u8>| self.sealer().open(place, sealed).is_ok_and(|plain| plain == CANARY.as_bytes());
        if !sealed.into_iter().all(opens) {
            return Err(KeyError::Wrong);
        }
        Ok(self.register_key().await?)
    }

    /// Records that values are sealed with the newest key.
    async fn register_key(&self) -> DbResult<()> {
        if let Some(Canary { fingerprint, sealed }) = self.canary()? {
            Register { fingerprint, sealed }.query().run(self).await?;
        }
        Ok(())
    }

    /// From now on values are bound to their place. A former version cannot read them, and no longer starts.
    pub async fn begin_bound(&self) -> DbResult<()> {
        self.sealer().set_bound(true);
        if let Some(Canary { fingerprint, sealed }) = self.canary()? {
            RegisterAnew { fingerprint, sealed }.query().run(self).await?;
        }
        Ok(())
    }

    /// The canary under the newest key; `None`: there is no key.
    fn canary(&self) -> DbResult<Option<Canary>> {
        if !self.sealer().is_on() {
            return Ok(None);
        }
        let fingerprint = self.sealer().fingerprint(REALM, CANARY).to_vec();
        let sealed = self.sealer().seal(sealed::SEAL_CHECK.of_nobody(), CANARY.as_bytes())?;
        Ok(Some(Canary { fingerprint, sealed }))
    }

    /// Records that no value is sealed with another key than the newest.
    pub async fn forget_old_keys(&self) -> DbResult<usize> {
        let fingerprint = self.sealer().fingerprint(REALM, CANARY).to_vec();
        ForgetOthers { fingerprint }.query().run(self).await
    }
}

sql!(List in "seal_check/list.sql" {} -> Vec<u8> as Binary);
sql!(Register in "seal_check/register.sql" { fingerprint: Vec<u8> as Binary, sealed: Vec<u8> as Binary });
sql!(RegisterAnew in "seal_check/register_anew.sql" { fingerprint: Vec<u8> as Binary, sealed: Vec<u8> as Binary });
sql!(ForgetOthers in "seal_check/forget_others.sql" { fingerprint: Vec<u8> as Binary });
statements!(List, Register, RegisterAnew, ForgetOthers);
