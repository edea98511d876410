//! Images of every version and option that qemu-img makes: opened, written and compared, or
//! refused by name.

use crate::support::{Disk, READ, Random, Scratch, WRITE, Want, churn};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const SIZE: usize = 24 << 20;

/// Opens the image, does random operations, closes it; then QEMU's tools have their say.
fn verify(scratch: &Scratch, name: &str, seed: u64) {
    let before = {
        let disk = Disk::open(&scratch.path(name), READ).unwrap();
        let contents = disk.contents();
        disk.close();
        contents
    };
    let mut model = before;
    let disk = Disk::open(&scratch.path(name), WRITE).unwrap();
    churn(&disk, &mut model, &mut Random::new(seed), 320);
    assert!(
        disk.contents() == model,
        "{name}: what was written is not there"
    );
    disk.close();
    compare(scratch, name, &model);
}

/// QEMU finds no mistake in the image, and the same bytes.
fn compare(scratch: &Scratch, name: &str, model: &[u8]) {
    scratch.qemu_img(&["check", name]);
    std::fs::write(scratch.path("model"), model).unwrap();
    scratch.qemu_img(&["compare", "-f", "qcow2", "-F", "raw", name, "model"]);
}

fn create(scratch: &Scratch, name: &str, options: &str) {
    let size = SIZE.to_string();
    scratch.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, name, &size]);
}

#[test]
fn images_of_every_supported_option_are_written_as_qemu_expects() {
    let scratch = Scratch::new("options");
    let options = [
        "compat=0.10",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=4096",
        "cluster_size=2M",
        "compat=0.10,cluster_size=1024",
        "refcount_bits=1",
        "refcount_bits=8",
        "refcount_bits=64",
        "lazy_refcounts=on",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "data_file=data.bin",
    ];
    for (seed, options) in options.into_iter().enumerate() {
        println!("{options}");
        create(&scratch, "image", options);
        verify(&scratch, "image", seed as u64 + 1);
        std::fs::remove_file(scratch.path("image")).unwrap();
    }
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    let scratch = Scratch::new("refused");
    let secret = "secret,id=key,data=abc";
    let size = SIZE.to_string();
    let refused: [(&[&str], &str); 4] = [
        (
            // LUKS is told apart in the header's own tests: making one is timed by qemu-img.
            &["-o", "encrypt.format=aes,encrypt.key-secret=key"],
            "encrypted (AES): not supported; decrypt it: qemu-img convert",
        ),
        (
            &["-o", "extended_l2=on"],
            "extended L2 entries: not supported; convert it: qemu-img convert -O qcow2 -o extended_l2=off",
        ),
        (
            &["-o", "compression_type=zstd"],
            "compression type other than zlib: not supported; convert it: qemu-img convert -O qcow2",
        ),
        (
            &["-o", "data_file=data.bin,data_file_raw=on"],
            "its data file is raw by itself (data_file_raw), which writing here would not keep up; open it read-only, or write to DIR/data.bin as file:",
        ),
    ];
    for (options, why) in refused {
        let mut words = vec!["create", "-q", "-f", "qcow2", "--object", secret];
        words.extend(options);
        words.extend(["image", &size]);
        scratch.qemu_img(&words);
        let path = scratch.path("image");
        let error = Disk::open(&path, WRITE).err().unwrap();
        let why = why.replace("DIR", &scratch.0.display().to_string());
        assert_eq!(error.message, format!("{}: {why}", path.display()));
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_raw_data_file_is_read() {
    let scratch = Scratch::new("raw-data");
    create(&scratch, "image", "data_file=data.bin,data_file_raw=on");
    scratch.run("qemu-io", &["-c", "write -P 7 1M 64k", "image"]);
    let disk = Disk::open(&scratch.path("image"), READ).unwrap();
    assert_eq!(disk.run(Want::Read(1 << 20, 512)), Ok(vec![7; 512]));
    disk.close();
}

#[test]
fn what_is_beneath_shows_through_and_is_never_written() {
    let scratch = Scratch::new("backing");
    let base = Random::new(9).bytes(SIZE / 2 + 512);
    std::fs::write(scratch.path("base.raw"), &base).unwrap();
    let size = SIZE.to_string();
    for compat in ["compat=0.10", "compat=1.1"] {
        for (name, below, format) in [("mid", "base.raw", "raw"), ("top", "mid", "qcow2")] {
            scratch.qemu_img(&[
                "create", "-q", "-f", "qcow2", "-o", compat, "-b", below, "-F", format, name, &size,
            ]);
        }
        scratch.run("qemu-io", &["-c", "write -P 7 3M 1M", "mid"]);
        verify(&scratch, "top", 77);
        let disk = Disk::open(&scratch.path("mid"), READ).unwrap();
        let contents = disk.contents();
        disk.close();
        let mut expected = base.clone();
        expected.resize(SIZE, 0);
        expected[3 << 20..4 << 20].fill(7);
        assert!(contents == expected, "the image beneath has changed");
        assert!(std::fs::read(scratch.path("base.raw")).unwrap() == base);
    }
}

#[test]
fn compressed_clusters_are_read_and_replaced() {
    let scratch = Scratch::new("compressed");
    std::fs::write(scratch.path("plain"), Random::new(3).bytes(SIZE)).unwrap();
    scratch.qemu_img(&[
        "convert", "-c", "-O", "qcow2", "-f", "raw", "plain", "image",
    ]);
    verify(&scratch, "image", 5);
}

#[test]
fn internal_snapshots_keep_their_content() {
    let scratch = Scratch::new("snapshots");
    create(&scratch, "image", "compat=1.1");
    scratch.run("qemu-io", &["-c", "write -P 7 0 8M", "image"]);
    scratch.qemu_img(&["snapshot", "-c", "then", "image"]);
    verify(&scratch, "image", 6);
    scratch.qemu_img(&["snapshot", "-a", "then", "image"]);
    let mut then = vec![0; SIZE];
    then[..8 << 20].fill(7);
    compare(&scratch, "image", &then);
}

#[test]
fn discarded_clusters_are_given_back() {
    let scratch = Scratch::new("discard");
    for compat in ["compat=0.10", "compat=1.1"] {
        create(&scratch, "image", compat);
        let disk = Disk::open(&scratch.path("image"), WRITE).unwrap();
        disk.run(Want::Write(0, vec![7; 8 << 20])).unwrap();
        disk.run(Want::Discard(0, 8 << 20)).unwrap();
        disk.close();
        // The header, refcounts, L1 and L2.
        let said = scratch.qemu_img(&["check", "image"]);
        assert!(said.contains("Image end offset: 327680"), "{said}");
        let blocks = std::fs::metadata(scratch.path("image")).unwrap().blocks();
        assert!(
            blocks < 8 << 20 >> 9,
            "{compat}: the file system still holds {blocks} blocks"
        );
        std::fs::remove_file(scratch.path("image")).unwrap();
    }
}

#[test]
fn a_resized_disk_keeps_its_bytes_and_what_is_new_is_zero() {
    let scratch = Scratch::new("resize");
    for options in [
        "compat=0.10",
        "compat=1.1",
        "data_file=data.bin",
        "cluster_size=2M",
    ] {
        create(&scratch, "image", options);
        let disk = Disk::open(&scratch.path("image"), WRITE).unwrap();
        let mut model = Random::new(4).bytes(SIZE);
        disk.run(Want::Write(0, model.clone())).unwrap();
        for size in [SIZE - 512, SIZE / 2 + 1024, SIZE * 2, SIZE * 3 + 512] {
            disk.resize(size).unwrap();
            model.resize(size, 0);
            assert!(
                disk.contents() == model,
                "{options}: after a resize to {size}"
            );
        }
        disk.close();
        compare(&scratch, "image", &model);
        std::fs::remove_file(scratch.path("image")).unwrap();
    }
}

#[test]
fn a_grown_disk_does_not_show_more_of_what_is_beneath() {
    let scratch = Scratch::new("grow-backing");
    std::fs::write(scratch.path("base"), vec![7; SIZE]).unwrap();
    for compat in ["compat=0.10", "compat=1.1"] {
        scratch.qemu_img(&[
            "create", "-q", "-f", "qcow2", "-o", compat, "-b", "base", "-F", "raw", "image", "1M",
        ]);
        let disk = Disk::open(&scratch.path("image"), WRITE).unwrap();
        disk.resize(SIZE + 512).unwrap();
        let mut model = vec![0; SIZE + 512];
        model[..1 << 20].fill(7);
        assert!(disk.contents() == model);
        disk.close();
        compare(&scratch, "image", &model);
    }
}

#[test]
fn an_image_in_use_is_refused_to_others_and_to_qemu() {
    let scratch = Scratch::new("locks");
    create(&scratch, "image", "compat=1.1");
    let path = scratch.path("image");
    let disk = Disk::open(&path, WRITE).unwrap();
    let error = Disk::open(&path, WRITE).err().unwrap();
    assert_eq!(error.errno, rustix::io::Errno::AGAIN);
    let qemu_io = std::process::Command::new("qemu-io")
        .args(["-c", "write 0 512"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(!qemu_io.status.success(), "QEMU writes to a locked image");
    disk.close();
    scratch.run("qemu-io", &["-c", "write 0 512", "image"]);
}

#[test]
fn direct_images_are_written_as_qemu_expects() {
    let scratch = Scratch::new("direct");
    let path = scratch.path("image");
    create(&scratch, "image", "compat=1.1");
    let options = vduse_qcow2::Options {
        direct: true,
        ..WRITE
    };
    let disk = match Disk::open(&path, options) {
        Ok(disk) => disk,
        // A file system without O_DIRECT says so, and there is nothing else to show.
        Err(error) => return assert!(error.message.contains("has no O_DIRECT"), "{error}"),
    };
    let mut model = vec![0; SIZE];
    churn(&disk, &mut model, &mut Random::new(8), 160);
    disk.close();
    compare(&scratch, "image", &model);
}

#[test]
fn an_image_that_names_itself_or_something_odd_is_refused() {
    let scratch = Scratch::new("names");
    let image = |name: &str, below: &str, format: Option<&str>| {
        create(&scratch, name, "compat=1.1");
        let mut words = vec!["rebase", "-u", "-b", below];
        words.extend(format.iter().flat_map(|format| ["-F", format]));
        words.push(name);
        scratch.qemu_img(&words);
        let error = Disk::open(&scratch.path(name), WRITE).err().unwrap();
        error
            .message
            .replace(&format!("{}/", scratch.0.display()), "")
    };
    assert_eq!(
        image("round", "round", Some("qcow2")),
        "round is in use by another program, which holds its \"write\" lock; stop that program first"
    );
    assert_eq!(
        image("remote", "nbd://there/it", Some("raw")),
        "remote: names \"nbd://there/it\": only paths of files are followed"
    );
    assert_eq!(
        image("odd", "base", Some("vmdk")),
        "odd: its backing file is of format \"vmdk\": raw and qcow2 are known"
    );
    assert!(!Path::new("base").exists());
}

#[test]
fn the_thread_engine_serves_images_too() {
    let scratch = Scratch::new("threads");
    create(&scratch, "image", "compat=1.1");
    let options = vduse_qcow2::Options {
        engine: vduse_device::backend::EngineChoice::Threads,
        ..WRITE
    };
    let disk = Disk::open(&scratch.path("image"), options).unwrap();
    let mut model = vec![0; SIZE];
    churn(&disk, &mut model, &mut Random::new(8), 160);
    disk.close();
    compare(&scratch, "image", &model);
}

#[test]
fn more_requests_than_may_run_at_once_all_end() {
    let scratch = Scratch::new("many");
    // Every request needs an L2 table of its own: there are more than imago keeps.
    create(&scratch, "image", "cluster_size=512");
    let disk = Disk::open(&scratch.path("image"), WRITE).unwrap();
    let step = SIZE / 512;
    let mut model = vec![0; SIZE];
    // The first time the tables are made, then they are looked up and changed.
    for skip in [0, 1024] {
        let places: Vec<usize> = (0..512).map(|n| n * step + skip).collect();
        let begin = |&at: &usize| disk.start(Want::Write(at as u64, vec![7; 512]));
        let writes: Vec<_> = places.iter().map(begin).collect();
        for write in writes {
            write.recv().unwrap().unwrap();
        }
        for at in places {
            model[at..at + 512].fill(7);
        }
    }
    disk.close();
    compare(&scratch, "image", &model);
}

#[test]
fn a_closed_image_refuses_what_comes_after() {
    let scratch = Scratch::new("closed");
    create(&scratch, "image", "compat=1.1");
    let disk = Disk::open(&scratch.path("image"), WRITE).unwrap();
    vduse_device::backend::Backend::close(&*disk.backend).unwrap();
    let refused = Err(rustix::io::Errno::BADF);
    assert_eq!(disk.run(Want::Read(0, 512)), refused);
    assert_eq!(
        disk.resize(SIZE * 2).unwrap_err().message,
        "the image is closed"
    );
    disk.close();
}
