//! Check: whether rules do what they say.

pub mod case;
pub mod choice;
