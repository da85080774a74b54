//! Check: rules and cases are judged by evaluation and by execution.

pub mod case;
pub mod choice;
pub mod eval;
mod generate;
mod hints;
mod outputs;
pub mod random;
mod shapes;
mod show;
mod verify;

pub use self::generate::Instance;
pub use self::outputs::outputs;
pub use self::show::refusal;
pub use self::verify::{CounterExample, Finding, Obstacle, Verdict, VerifyConfig, mutations, verify};
