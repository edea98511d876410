//! The entry function of the fuzz target, and what it holds a header to.

use crate::header::Header;

/// `data`: the file's size in clusters of 64 KiB, one byte, then its first bytes.
pub fn header(data: &[u8]) {
    let Some((&clusters, start)) = data.split_first() else {
        return;
    };
    let file_size = (u64::from(clusters) << 16).max(start.len() as u64);
    let parsed = Header::parse(start, file_size);
    assert_eq!(parsed, Header::parse(start, file_size));
    match parsed {
        Err(refusal) => {
            let line = refusal.to_string();
            assert!(!line.is_empty() && line.len() < 200);
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        Ok(header) => {
            assert!((2..=3).contains(&header.version));
            assert!(header.size > 0 && header.size.is_multiple_of(512));
            assert!((512..=2 << 20).contains(&header.cluster_size));
            assert!(header.cluster_size.is_power_of_two());
            if let Some(backing) = &header.backing {
                assert!((1..=1023).contains(&backing.name.len()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    /// Headers near a good one, in places and values of their own.
    #[test]
    fn changed_headers_are_refused_or_read() {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = |limit: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % limit
        };
        let plain = crate::header::tests::plain();
        for _ in 0..50_000 {
            let mut data = vec![4];
            data.extend(&plain[..1024]);
            for _ in 0..1 + random(4) {
                let at = 1 + random(200) as usize;
                data[at] = match random(3) {
                    0 => 0,
                    1 => 0xff,
                    _ => random(256) as u8,
                };
            }
            super::header(&data);
        }
    }
}
