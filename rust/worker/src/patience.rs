//! How long something without work stays hot.

/// How often it is looked at in vain, while others work, before it is armed: looking has cost
/// about as much then as the notification that it saves.
const MOST: u32 = 64;

/// Of one that is hot.
#[derive(Debug, Default)]
pub struct Patience {
    vain: u32,
}

impl Patience {
    /// It has had work, or was armed.
    pub fn renew(&mut self) {
        self.vain = 0;
    }

    /// It was looked at in vain; whether it stays hot. Where others do not work, it does: the
    /// worker will arm it soon.
    pub fn lasts(&mut self, others_work: bool) -> bool {
        self.vain += u32::from(others_work);
        self.vain < MOST
    }
}
