//! Images whose tables lie: every request ends, and nothing else does.

use crate::support::{Disk, READ, Random, Scratch, WRITE, Want};

const SIZE: u64 = 4 << 20;

/// An image with data, and a snapshot that shares some of it.
fn image(scratch: &Scratch, options: &str) -> Vec<u8> {
    scratch.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "image", "4M"]);
    scratch.run("qemu-io", &["-c", "write -P 7 0 1M", "image"]);
    scratch.qemu_img(&["snapshot", "-c", "then", "image"]);
    scratch.run(
        "qemu-io",
        &["-c", "write -z 2M 1M", "-c", "write -P 9 64k 1M", "image"],
    );
    std::fs::read(scratch.path("image")).unwrap()
}

/// Operations on all of the disk at once; whatever they say, they say something.
fn use_all(disk: &Disk, random: &mut Random) {
    let begun: Vec<_> = (0..48)
        .map(|_| {
            let at = random.below(SIZE / 512 - 256) * 512;
            let len = (1 + random.below(256)) * 512;
            disk.start(match random.below(5) {
                0 | 1 => Want::Read(at, len as usize),
                2 => Want::Write(at, vec![5; len as usize]),
                3 => Want::Zero(at, len, true),
                _ => Want::Discard(at, len),
            })
        })
        .collect();
    for answer in begun {
        let _ = answer.recv().expect("every operation ends");
    }
    let _ = disk.run(Want::Flush);
}

#[test]
fn every_request_on_a_corrupted_image_ends() {
    let scratch = Scratch::new("hostile");
    let mut random = Random::new(11);
    for options in ["cluster_size=512", "cluster_size=4096,refcount_bits=8"] {
        let whole = image(&scratch, options);
        let (mut opened, mut refused) = (0, 0);
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(12) {
                // Most tables lie at the beginning; each value is one that means something.
                let at = 512 + random.below(24 << 10) as usize / 8 * 8;
                let value: u64 = match random.below(6) {
                    0 => 0,
                    1 => u64::MAX,
                    2 => random.below(1 << 20) << 9 | 1 << 63,
                    3 => random.below(1 << 20) << 9 | 1 << 62,
                    4 => random.below(1 << 60),
                    _ => 512 | 1 << 63,
                };
                bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
            }
            std::fs::write(scratch.path("image"), bytes).unwrap();
            match Disk::open(&scratch.path("image"), WRITE) {
                Ok(disk) => {
                    use_all(&disk, &mut random);
                    let _ = vduse_device::backend::Backend::close(&*disk.backend);
                    opened += 1;
                }
                Err(_) => refused += 1,
            }
        }
        println!("{options}: {opened} opened, {refused} refused");
        assert!(opened > 0);
        std::fs::remove_file(scratch.path("image")).unwrap();
    }
}

#[test]
fn an_image_cut_short_anywhere_is_refused_or_read() {
    let scratch = Scratch::new("short");
    let whole = image(&scratch, "cluster_size=512");
    for part in 1..40 {
        std::fs::write(scratch.path("image"), &whole[..whole.len() * part / 40]).unwrap();
        if let Ok(disk) = Disk::open(&scratch.path("image"), READ) {
            let _ = disk.run(Want::Read(0, SIZE as usize));
            disk.close();
        }
    }
}
