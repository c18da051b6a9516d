//! What the commands for one VM have in common: finding it, and saying why it cannot be reached.

use std::path::Path;

use anyhow::{Result, bail};
use kube::Api;
use vmlet_crds::VirtualMachine;

use crate::cli::VmArgs;
use crate::setup;

/// The object that the command line names.
///
/// # Errors
/// There is none, or the API does not answer.
pub async fn get(args: &VmArgs) -> Result<VirtualMachine> {
    let config = setup::config(&args.api).await?;
    let server = config.cluster_url.clone();
    let namespace = args.namespace.as_ref().unwrap_or(&config.default_namespace).clone();
    let api: Api<VirtualMachine> = Api::namespaced(setup::client(config)?, &namespace);
    let name = name(&args.vm)?;
    match api.get_opt(name).await {
        Ok(Some(vm)) => Ok(vm),
        Ok(None) => bail!("there is no virtual machine \"{name}\" in namespace \"{namespace}\""),
        Err(error) => bail!("the API at {server} {}", refusal(&error)),
    }
}

/// The name in `NAME` or, as kubectl prints and takes it, `KIND/NAME`.
fn name(argument: &str) -> Result<&str> {
    let Some((kind, name)) = argument.split_once('/') else {
        return Ok(argument);
    };
    match kind.strip_suffix(".vmlet.dev").unwrap_or(kind) {
        "vm" | "vlvm" | "virtualmachine" | "virtualmachines" if !name.contains('/') => Ok(name),
        _ => bail!("\"{argument}\" names no virtual machine: give its name, or vm/NAME"),
    }
}

/// What an API did instead of giving a VM, and what to do.
fn refusal(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 401 => {
            "does not know the login in the kubeconfig: give that of the right API with --kubeconfig or KUBECONFIG"
                .to_owned()
        }
        kube::Error::Api(status) if status.code == 404 => {
            "knows no virtual machines (virtualmachines.vmlet.dev): give the kubeconfig of one with vmlet in it"
                .to_owned()
        }
        kube::Error::Api(status) => format!("refused: {}", status.message),
        error => format!(
            "gave {}. Is its server running, and is this the right kubeconfig?",
            vmlet_crds::in_words(error)
        ),
    }
}

/// Why it does not run, in the words of its status. None: it runs, as far as its status says.
pub fn not_running(vm: &VirtualMachine) -> Option<String> {
    let conditions = vm.status.as_ref().map(|status| status.conditions.as_slice())?;
    let find = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
    if find("Running").is_some_and(|running| running.status != "False") {
        return None;
    }
    let Some(why) = find("Ready") else {
        return Some("it has not been started yet".to_owned());
    };
    Some(match why.message.as_str() {
        "" => why.reason.clone(),
        message => format!("{}: {message}", why.reason),
    })
}

/// Why nothing of a VM's machine is below the data directory, and what to do.
pub fn nothing_below(vm: &VirtualMachine, data_dir: &Path) -> String {
    let dir = data_dir.display();
    match (&vm.spec.node_name, not_running(vm)) {
        (None, why) => format!(
            "it is bound to no node yet ({})",
            why.unwrap_or_else(|| "not scheduled".to_owned())
        ),
        (Some(node), Some(why)) => format!(
            "nothing of it is below {dir}: it has not started ({why}), or its node {node} is another machine, or the agent uses another --data-dir"
        ),
        (Some(node), None) => format!(
            "nothing of it is below {dir}: run this on its node, {node}, with the --data-dir of the agent there"
        ),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use vmlet_crds::{VirtualMachineSpec, VirtualMachineStatus};

    /// A VM with these conditions: type, status, reason, message.
    pub fn vm(conditions: &[[&str; 4]]) -> VirtualMachine {
        let mut vm = VirtualMachine::new("web", VirtualMachineSpec::default());
        let conditions: Vec<serde_json::Value> = conditions
            .iter()
            .map(|[type_, status, reason, message]| {
                serde_json::json!({"type": type_, "status": status, "reason": reason, "message": message,
                    "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        let status: VirtualMachineStatus =
            serde_json::from_value(serde_json::json!({ "conditions": conditions })).expect("a status");
        vm.status = Some(status);
        vm
    }

    #[test]
    fn a_machine_that_does_not_run_says_why_in_the_words_of_its_status() {
        let halted = vm(&[
            ["Running", "False", "Stopped", ""],
            ["Ready", "False", "Halted", "spec.runStrategy is Halted"],
        ]);
        assert_eq!(
            not_running(&halted).as_deref(),
            Some("Halted: spec.runStrategy is Halted")
        );
        for status in ["True", "Unknown"] {
            assert_eq!(not_running(&vm(&[["Running", status, "", ""]])), None);
        }
        assert!(not_running(&vm(&[])).is_some());
    }

    #[test]
    fn a_machine_is_named_by_its_name_or_as_kubectl_does() {
        for argument in ["web", "vm/web", "virtualmachine.vmlet.dev/web", "virtualmachines/web"] {
            assert_eq!(name(argument).expect(argument), "web");
        }
        for argument in ["image/web", "vm/web/status", "/web"] {
            let refused = name(argument).expect_err(argument).to_string();
            assert!(refused.contains(argument) && refused.contains("vm/NAME"), "{refused}");
        }
    }

    #[test]
    fn an_api_that_gives_no_machine_says_why_in_a_line_and_what_to_do() {
        let api = |code: u16, message: &str| {
            let status = serde_json::json!({"status": "Failure", "code": code, "message": message, "reason": "x"});
            let status = serde_json::from_value(status).expect("a status");
            refusal(&kube::Error::Api(Box::new(status)))
        };
        assert!(api(401, "Unauthorized").contains("--kubeconfig"));
        assert!(api(404, "404 page not found").contains("virtualmachines.vmlet.dev"));
        let forbidden = api(403, "virtualmachines.vmlet.dev \"web\" is forbidden");
        assert_eq!(forbidden, "refused: virtualmachines.vmlet.dev \"web\" is forbidden");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let silent = refusal(&kube::Error::Service(Box::new(refused)));
        assert!(silent.starts_with("gave no answer: connection refused. "), "{silent}");
    }

    #[test]
    fn what_is_not_on_this_machine_is_said_with_its_node() {
        let dir = Path::new("/data");
        let mut running = vm(&[["Running", "True", "Running", ""]]);
        assert!(nothing_below(&running, dir).contains("bound to no node"));
        running.spec.node_name = Some("node-7".to_owned());
        let text = nothing_below(&running, dir);
        assert!(text.contains("node-7") && text.contains("/data"), "{text}");
    }
}
