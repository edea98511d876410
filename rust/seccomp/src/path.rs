//! Paths, without the file system: it may not have what they name.

/// Where the nodes are.
pub(crate) const FOLDER: &[u8] = b"/dev/vduse";
/// `PATH_MAX` of linux/limits.h, its NUL among them.
pub(crate) const PATH_MAX: usize = 4096;

/// `path` made absolute and free of `.`, `..` and doubled slashes, by its text alone (symbolic
/// links are not followed). `base`: where a relative one begins. `None`: it begins nowhere.
pub(crate) fn normalise(path: &[u8], base: impl FnOnce() -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let base = match path {
        [] => return None,
        [b'/', ..] => Vec::new(),
        _ => base().filter(|base| base.starts_with(b"/"))?,
    };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in base.split(is_slash).chain(path.split(is_slash)) {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut whole = Vec::with_capacity(base.len() + path.len() + 1);
    for part in parts {
        whole.push(b'/');
        whole.extend_from_slice(part);
    }
    Some(whole)
}

/// Whether a normalised path is /dev/vduse or lies below it.
pub(crate) fn is_ours(path: &[u8]) -> bool {
    matches!(path.strip_prefix(FOLDER), Some([] | [b'/', ..]))
}

fn is_slash(byte: &u8) -> bool {
    *byte == b'/'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(base: &str, path: &str) -> Option<String> {
        let base = || Some(base.as_bytes().to_vec());
        normalise(path.as_bytes(), base).map(|path| String::from_utf8(path).unwrap())
    }

    #[test]
    fn paths_by_their_text() {
        for (base, path, expected) in [
            ("/x", "/dev/vduse/control", "/dev/vduse/control"),
            ("/x", "//dev/./vduse///control/", "/dev/vduse/control"),
            ("/x", "/a/../../dev/b/../vduse/.", "/dev/vduse"),
            ("/dev", "vduse/control", "/dev/vduse/control"),
            ("/dev/vduse", "control", "/dev/vduse/control"),
            ("/dev/vduse", ".", "/dev/vduse"),
            ("/", "dev/vduse", "/dev/vduse"),
            ("/a/b", "../../dev/vduse", "/dev/vduse"),
            ("/x", "/", ""),
        ] {
            assert_eq!(from(base, path).as_deref(), Some(expected), "{base} {path}");
        }
    }

    #[test]
    fn some_paths_lead_nowhere() {
        assert_eq!(from("/dev/vduse", ""), None, "an empty one");
        assert_eq!(
            from("socket:[12]", "control"),
            None,
            "the base is no directory"
        );
        assert_eq!(normalise(b"control", || None), None, "there is no base");
    }

    #[test]
    fn ours_is_the_folder_and_what_lies_below() {
        for (path, ours) in [
            ("/dev/vduse", true),
            ("/dev/vduse/control", true),
            ("/dev/vduse/a/b", true),
            ("/dev/vdus", false),
            ("/dev/vduse2", false),
            ("/dev", false),
            ("", false),
        ] {
            assert_eq!(is_ours(path.as_bytes()), ours, "{path}");
        }
    }

    #[test]
    fn any_bytes_are_a_path() {
        let path = normalise(b"/dev/vduse/\xff\xfe", || None).unwrap();
        assert!(is_ours(&path));
    }
}
