//! Opening and closing images of the fake cluster: names, keys, locks, size.

use crate::support::{Image, Log, Queue, SIZE, library, lost, refused, scratch, user, write};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;
use vduse_device::Length;
use vduse_device::backend::{Backend, Connection, Notice, Observer};
use vduse_rbd::{Key, Library, Lock, Options, Rbd};

#[test]
fn a_missing_library_is_named_with_its_package() {
    let error = Library::load("libnone.so.9", "librbd.so.1")
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.errno, Errno::NOENT);
    assert!(error.message.starts_with("libnone.so.9: "), "{error}");
    assert!(
        error
            .message
            .ends_with("Debian's package librados2 has it: apt install librados2")
    );
}

#[test]
fn a_library_that_lacks_a_function_is_too_old() {
    let error = Library::load("libc.so.6", "libc.so.6")
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.errno, Errno::NOSYS);
    assert_eq!(
        error.message,
        "libc.so.6 has no rados_create2: Debian's package librados2 of Ceph 16 or later is needed"
    );
}

#[test]
fn an_image_has_the_size_it_was_made_with() {
    let image = Image::new("size/space/disk");
    let disk = image.open();
    let info = disk.info();
    assert_eq!((info.size, info.block_size), (Length(SIZE), 512));
    assert!(!info.read_only && info.can_discard);
    assert_eq!(disk.connection(), Connection::Connected);
    assert_eq!(disk.engine_name(), "librbd");
}

#[test]
fn what_is_not_there_is_named() {
    let image = Image::new("missing/disk");
    let named = |change: fn(&mut Options)| {
        let mut options = image.options();
        change(&mut options);
        let error = refused(options);
        assert_eq!(error.errno, Errno::NOENT);
        error.message
    };
    assert_eq!(
        named(|options| options.pool = "nopool".into()),
        "nopool/disk: no pool nopool; ceph osd pool ls has them"
    );
    assert_eq!(
        named(|options| options.image = "other".into()),
        "missing/other: no such image; create it: rbd create missing/other --size 1G"
    );
    assert_eq!(
        named(|options| options.snapshot = Some("monday".into())),
        "missing/disk@monday: no such snapshot; rbd snap ls missing/disk"
    );
    let message = named(|options| options.conf = Some("/nowhere/ceph.conf".into()));
    assert!(message.starts_with("/nowhere/ceph.conf: "), "{message}");
}

#[test]
fn cephx_by_key_and_by_keyring() {
    let image = Image::new("cephx/disk");
    user("cephx", "AQBright==");
    let mut options = image.options();
    options.id = Some("cephx".into());
    assert_eq!(refused(options.clone()).errno, Errno::NOENT);
    options.key = Some(Key("AQBwrong==".into()));
    let error = refused(options.clone());
    assert_eq!(error.errno, Errno::ACCESS);
    assert!(
        error.message.contains("client.cephx cannot connect"),
        "{error}"
    );
    assert!(!error.message.contains("AQB"), "{error}");
    assert!(!format!("{options:?}").contains("AQB"));
    options.key = Some(Key("AQBright==".into()));
    drop(Rbd::open(library(), options.clone()).unwrap());
    image.wait_open(0);
    let keyring = scratch("keyring");
    std::fs::write(&keyring, "[client.cephx]\n\tkey = AQBright==\n").unwrap();
    (options.key, options.keyring) = (None, Some(keyring.to_str().unwrap().into()));
    drop(Rbd::open(library(), options).unwrap());
    std::fs::remove_file(&keyring).unwrap();
}

#[test]
fn an_open_image_is_locked_until_it_is_closed() {
    let image = Image::new("locked/disk");
    let disk = image.open();
    assert!(image.is_locked());
    let error = refused(image.options());
    assert_eq!(error.errno, Errno::BUSY);
    assert!(
        error.message.starts_with("locked/disk: 127.0.0.1:0/"),
        "{error}"
    );
    assert_eq!(disk.close(), Ok(()));
    assert!(!image.is_locked());
    assert_eq!(disk.close(), Ok(()));
    assert_eq!(image.open().close(), Ok(()));
}

#[test]
fn read_only_takes_no_lock() {
    let image = Image::new("unlocked/disk");
    let _disk = image.open();
    let mut options = image.options();
    options.read_only = true;
    let reader = Rbd::open(library(), options).unwrap();
    assert!(reader.info().read_only);
}

#[test]
fn a_dead_owner_loses_the_lock_and_one_alive_keeps_it() {
    let image = Image::new("owner/disk");
    image.owner("192.0.2.1:0/7", false);
    assert_eq!(image.open().close(), Ok(()));
    image.owner("192.0.2.1:0/8", true);
    assert_eq!(
        refused(image.options()).message,
        "owner/disk: 192.0.2.1:0/8 has its lock; end what uses it there (a program that was \
         killed counts for half a minute), or take it away with lock=break"
    );
    image.wait_open(0);
}

#[test]
fn a_broken_lock_is_ours_and_who_had_it_is_refused() {
    let image = Image::new("broken/disk");
    let first = image.open();
    let log = Arc::new(Log::default());
    let observer: Arc<dyn Observer> = log.clone();
    first.observe(Arc::downgrade(&observer));
    let mut options = image.options();
    options.lock = Lock::Break;
    let second = Rbd::open(library(), options).unwrap();
    let why = "the cluster refuses this client: another one has taken the image's lock";
    let mut queue = Queue::new(&first);
    assert_eq!(queue.run(write(0, &[1; 512])), Err(Errno::SHUTDOWN));
    assert_eq!(queue.run(write(0, &[1; 512])), Err(Errno::SHUTDOWN));
    assert_eq!(log.wait(), lost(why));
    assert_eq!(first.connection(), Connection::Lost(why.into()));
    assert!(log.is_empty());
    assert_eq!(Queue::new(&second).run(write(0, &[2; 512])), Ok(None));
}

#[test]
fn a_shared_image_is_not_locked_by_opening() {
    let image = Image::with_features("shared/disk", 0);
    let error = refused(image.options());
    assert_eq!(error.errno, Errno::NOTSUP);
    assert!(
        error
            .message
            .contains("rbd feature enable shared/disk exclusive-lock"),
        "{error}"
    );
    let mut options = image.options();
    options.lock = Lock::Share;
    let _first = Rbd::open(library(), options.clone()).unwrap();
    let _second = Rbd::open(library(), options).unwrap();
}

#[test]
fn observers_hear_of_a_resize() {
    let image = Image::new("resize/disk");
    let disk = image.open();
    let log = Arc::new(Log::default());
    let observer: Arc<dyn Observer> = log.clone();
    disk.observe(Arc::downgrade(&observer));
    image.resize(2 * SIZE);
    assert_eq!(log.wait(), Notice::Resized(Length(2 * SIZE)));
    assert_eq!(disk.info().size, Length(2 * SIZE));
    assert_eq!(disk.refresh_size(), Ok(2 * SIZE));
    // One that no disk can have is left alone.
    image.resize(1000);
    assert_eq!(disk.refresh_size().unwrap_err().errno, Errno::INVAL);
    image.resize(SIZE);
    assert_eq!(log.wait(), Notice::Resized(Length(SIZE)));
}

#[test]
fn a_disk_is_resized_from_here_too() {
    let image = Image::new("resized/disk");
    let disk = image.open();
    let log = Arc::new(Log::default());
    let observer: Arc<dyn Observer> = log.clone();
    disk.observe(Arc::downgrade(&observer));
    assert_eq!(disk.resize(Length(2 * SIZE)), Ok(()));
    assert_eq!(log.wait(), Notice::Resized(Length(2 * SIZE)));
    assert_eq!(disk.info().size, Length(2 * SIZE));
    let error = disk.resize(Length(1000)).unwrap_err();
    assert_eq!(error.errno, Errno::INVAL);
    disk.close().unwrap();
    assert_eq!(disk.resize(Length(SIZE)).unwrap_err().errno, Errno::BADF);
}

#[test]
fn opening_waits_for_a_stalled_cluster_only_so_long() {
    let image = Image::new("stalled/disk");
    image.hold_open(true);
    let mut options = image.options();
    options.open_timeout = Duration::from_millis(1);
    let error = refused(options);
    assert_eq!(error.errno, Errno::TIMEDOUT);
    assert_eq!(
        error.message,
        "stalled/disk: no answer from the cluster in 0.001 s; see ceph status"
    );
    // What is opened too late is closed again.
    image.hold_open(false);
    let disk = loop {
        match Rbd::open(library(), image.options()) {
            Ok(disk) => break disk,
            Err(error) => assert_eq!(error.errno, Errno::BUSY),
        }
    };
    image.wait_open(1);
    drop(disk);
    image.wait_open(0);
}

#[test]
fn a_closed_image_stays_open_for_the_engines_on_it() {
    let image = Image::new("closed/disk");
    let disk = image.open();
    let mut queue = Queue::new(&disk);
    assert_eq!(disk.close(), Ok(()));
    assert_eq!(queue.run(write(0, &[1; 512])), Ok(None));
    assert!(image.is_locked());
    drop(queue);
    image.wait_open(0);
    assert!(!image.is_locked());
    assert_eq!(disk.refresh_size().unwrap_err().errno, Errno::BADF);
}

#[test]
fn closing_flushes() {
    let image = Image::new("flushed/disk");
    let disk = image.open();
    image.fail(Errno::IO);
    assert_eq!(
        disk.close().unwrap_err().message,
        "flushed/disk: flush: Input/output error (os error 5)"
    );
    image.wait_open(0);
}
