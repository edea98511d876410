//! What is opened, and how.

use std::fmt;
use std::time::Duration;

/// An image, or a snapshot of one, and how it is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pool's name.
    pub pool: String,
    /// The namespace in the pool; none is the pool's own.
    pub namespace: Option<String>,
    /// The image's name.
    pub image: String,
    /// The snapshot; a disk of one is read-only.
    pub snapshot: Option<String>,
    /// The cluster's configuration; without, where librados looks by itself.
    pub conf: Option<String>,
    /// The monitors, in place of those that the configuration names, as its `mon_host`.
    pub mon_host: Option<String>,
    /// How it shows who it is, as the configuration's `auth_client_required`.
    pub auth: Option<String>,
    /// The cephx user, without `client.`; without, `admin`.
    pub id: Option<String>,
    /// A keyring file, in place of the one that the configuration names.
    pub keyring: Option<String>,
    /// The user's cephx key itself, in base64.
    pub key: Option<Key>,
    /// Writes are refused.
    pub read_only: bool,
    /// Without librbd's cache.
    pub direct: bool,
    /// What becomes of the image's exclusive lock.
    pub lock: Lock,
    /// How long opening may take.
    pub open_timeout: Duration,
    /// How long requests wait for a cluster that does not answer, before they fail with EIO;
    /// without, as long as it takes.
    pub reconnect_delay: Option<Duration>,
}

/// The image's exclusive lock, unless it is opened read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Held as long as the image is open; EBUSY while a client that is alive has it.
    Refuse,
    /// Held; taken from who has it, whose writes the cluster refuses from then on.
    Break,
    /// librbd takes it with the first write, and hands it to who asks for it.
    Share,
}

/// A secret that no log shows.
#[derive(Clone)]
pub struct Key(pub String);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(...)")
    }
}

impl Options {
    /// An image of a pool, opened as the configuration that librados finds says; waits 30 s.
    pub fn new(pool: impl Into<String>, image: impl Into<String>) -> Options {
        Options {
            pool: pool.into(),
            namespace: None,
            image: image.into(),
            snapshot: None,
            conf: None,
            mon_host: None,
            auth: None,
            id: None,
            keyring: None,
            key: None,
            read_only: false,
            direct: false,
            lock: Lock::Refuse,
            open_timeout: Duration::from_secs(30),
            reconnect_delay: None,
        }
    }

    /// The name that Ceph's own tools write: `POOL/[NAMESPACE/]IMAGE[@SNAPSHOT]`.
    pub fn spec(&self) -> String {
        let mut spec = format!("{}/", self.pool);
        if let Some(namespace) = &self.namespace {
            spec += &format!("{namespace}/");
        }
        spec += &self.image;
        if let Some(snapshot) = &self.snapshot {
            spec += &format!("@{snapshot}");
        }
        spec
    }

    /// Whether nothing is ever written.
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.snapshot.is_some()
    }
}
