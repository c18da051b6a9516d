//! The list of scenarios.

use std::future::Future;
use std::pin::Pin;

use anyhow::Result;

use crate::cx::Cx;
use crate::{collection, crash, input, life, sharing};

/// What a scenario is run as.
pub type Outcome = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Who may run beside a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Others of this class.
    Parallel,
    /// Nobody: it touches more than its own objects.
    Global,
}

impl Class {
    /// As the list has it.
    pub fn word(self) -> &'static str {
        match self {
            Class::Parallel => "parallel",
            Class::Global => "global",
        }
    }
}

/// A scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name; its namespace too.
    pub name: &'static str,
    /// Who may run beside it.
    pub class: Class,
    /// What it proves, in a line.
    pub proves: &'static str,
    /// What it does.
    pub run: fn(Cx) -> Outcome,
}

macro_rules! scenarios {
    ($($class:ident $name:literal $run:path: $proves:literal;)*) => {
        vec![$(Scenario { name: $name, class: Class::$class, proves: $proves, run: |cx| Box::pin($run(cx)) }),*]
    };
}

/// All of them, the long ones first.
pub fn all() -> Vec<Scenario> {
    scenarios! {
        Parallel "ten-vms-one-image" sharing::ten_vms_one_image: "ten machines that need one missing image share one pull";
        Parallel "two-vms-one-kernel" sharing::two_vms_one_kernel: "two machines at once that need one missing kernel share one pull";
        Parallel "registry-down-then-up" input::registry_down_then_up: "a pull that fails is tried again, and the machine then starts";
        Parallel "restart" life::restart: "restartedAt gives a new boot id once, and the disk stays";
        Parallel "stop-start" life::stop_start: "Halted stops with a sync; what was written is there after the next start";
        Parallel "bare-run" life::bare_run: "from objects to a machine that runs, tells the truth and ends with 0";
        Parallel "keys-follow" life::keys_follow: "ssh keys change in a running machine, from the spec and from a secret";
        Parallel "exit-code" life::exit_code: "the exit code of the entrypoint is the machine's, and a failure is told";
        Parallel "port-in-use" input::port_in_use: "a taken port is a condition, not a failed boot, and is had once it is free";
        Parallel "delete-while-booting" life::delete_while_booting: "a machine that boots can be deleted, and nothing of it is left";
        Parallel "delete-while-pulling" life::delete_while_pulling: "deletion waits for no registry, and the pull that nobody wants ends";
        Parallel "invalid-spec" input::invalid_spec: "a broken manifest is refused with the field's name and leaves nothing";
        Parallel "bad-reference" input::bad_reference: "bad and missing references are told with cause, and the objects go when asked";
        Parallel "wrong-digest" input::wrong_digest: "bytes that are not what their digest says publish nothing";
        Global "shared-files-renewed" sharing::shared_files_renewed: "nobody ever reads half of an initrd that is being made anew";
        Global "collection" collection::collection: "what nobody uses is removed; what running, stopped and waiting machines use stays";
        Global "kill-while-pulling" crash::kill_while_pulling: "the agent is killed in a pull: the next one pulls again and the machine runs";
        Global "kill-while-booting" crash::kill_while_booting: "the agent is killed in a boot: the machine boots once, not twice";
        Global "kill-while-running" crash::kill_while_running: "the agent is killed beside a machine: it runs on with the same boot id";
        Global "kill-while-stopping" crash::kill_while_stopping: "the agent is killed in a stop: the next one ends it, without a kill";
        Global "kill-while-deleting" crash::kill_while_deleting: "the agent is killed in a deletion: the next one ends it and leaves nothing";
        Global "second-agent" crash::second_agent: "a second agent on one data directory is refused, and disturbs nobody";
        Global "torn-record" crash::torn_record: "a torn record is set aside and repaired, and its machine runs on";
        Global "nothing-left" crash::nothing_left: "after all of the above the data directory holds no machine, pin or temporary";
    }
}
