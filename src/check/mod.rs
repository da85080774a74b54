//! Check: rules and cases are judged by evaluation.

pub mod eval;
mod generate;
mod hints;
pub mod random;
mod shapes;
mod show;
mod verify;

pub use self::generate::Instance;
pub use self::show::refusal;
pub use self::verify::{CounterExample, Finding, Obstacle, Verdict, VerifyConfig, verify};
