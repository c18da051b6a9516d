//! Questions of clients about themselves: who am I, and may I.
//!
//! There is one user, and he may do everything: whoever holds the token of this API owns its machine's VMs.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::schema::FieldError;
use crate::status::{Failure, Subject};

/// The one user.
pub const USER: &str = "vmlet-admin";
/// His groups, in which Kubernetes would put him.
pub const GROUPS: [&str; 2] = ["system:masters", "system:authenticated"];

/// A resource that answers a POST and stores nothing.
#[derive(Debug)]
pub struct Review {
    /// API group; the version is `v1`.
    pub group: &'static str,
    /// As in the path.
    pub plural: &'static str,
    /// CamelCase.
    pub kind: &'static str,
}

/// All of them.
pub const REVIEWS: [Review; 3] = [
    Review {
        group: "authentication.k8s.io",
        plural: "selfsubjectreviews",
        kind: "SelfSubjectReview",
    },
    Review {
        group: "authorization.k8s.io",
        plural: "selfsubjectaccessreviews",
        kind: "SelfSubjectAccessReview",
    },
    Review {
        group: "authorization.k8s.io",
        plural: "selfsubjectrulesreviews",
        kind: "SelfSubjectRulesReview",
    },
];

/// The reviews of a group.
pub fn served(group: &str) -> impl Iterator<Item = &'static Review> {
    REVIEWS.iter().filter(move |r| r.group == group)
}

/// The review under `/apis/GROUP/VERSION/PLURAL`.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Review> {
    served(group).find(|r| version == "v1" && r.plural == plural)
}

impl Review {
    /// Answers a question; the status code of an answer is 201.
    ///
    /// # Errors
    /// 400 when `question` is of another kind or for rules of no namespace, 422 when it does not ask for exactly one permission.
    pub fn answer(&self, question: &Value, now: Timestamp) -> Result<Value, Failure> {
        let api_version = format!("{}/v1", self.group);
        for (key, wanted) in [("apiVersion", api_version.as_str()), ("kind", self.kind)] {
            // A body without a type is taken for what is asked here.
            if question.get(key).is_some_and(|given| given != wanted && given != "") {
                let given = &question[key];
                let message = format!("{key} is {given}, but {wanted:?} is asked here");
                return Err(Failure::bad_request(message));
            }
        }
        let mut answer = json!({"kind": self.kind, "apiVersion": api_version, "metadata": {}});
        if self.kind == "SelfSubjectReview" {
            let created = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            answer["metadata"]["creationTimestamp"] = created.into();
            answer["status"] = json!({"userInfo": {"username": USER, "groups": GROUPS}});
            return Ok(answer);
        }
        let spec = &question["spec"];
        if self.kind == "SelfSubjectRulesReview" {
            if spec["namespace"].as_str().unwrap_or_default().is_empty() {
                return Err(Failure::bad_request("no namespace on request"));
            }
            // As in the original, the question is not repeated.
            answer["spec"] = json!({});
            answer["status"] = json!({
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": false,
            });
            return Ok(answer);
        }
        let asked = |key: &str| spec[key].is_object();
        let wrong = match (asked("resourceAttributes"), asked("nonResourceAttributes")) {
            (true, true) => Some(FieldError::invalid(
                "spec.nonResourceAttributes",
                spec["nonResourceAttributes"].clone(),
                "cannot be specified in combination with resourceAttributes",
            )),
            (false, false) => Some(FieldError::invalid(
                "spec.resourceAttributes",
                Value::Null,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            )),
            _ => None,
        };
        if let Some(error) = wrong {
            let subject = Subject {
                group: self.group,
                kind: self.kind,
                name: "",
            };
            return Err(Failure::invalid(&subject, &[error.into()]));
        }
        answer["spec"] = spec.clone();
        answer["status"] = json!({"allowed": true});
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_is_told_who_he_is() {
        let review = find("authentication.k8s.io", "v1", "selfsubjectreviews").expect("a review");
        let question = json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}});
        let answer = review.answer(&question, Timestamp::UNIX_EPOCH).expect("an answer");
        assert_eq!(answer["metadata"]["creationTimestamp"], "1970-01-01T00:00:00Z");
        assert_eq!(answer["status"]["userInfo"]["username"], "vmlet-admin");
        assert_eq!(answer["status"]["userInfo"]["groups"][0], "system:masters");
    }

    #[test]
    fn everything_is_allowed_that_is_asked_properly() {
        let review = find("authorization.k8s.io", "v1", "selfsubjectaccessreviews").expect("a review");
        let asked = json!({"resourceAttributes": {"namespace": "default", "verb": "get", "group": "vm.example.com",
            "resource": "virtualmachines"}});
        let answer = review
            .answer(&json!({"spec": asked}), Timestamp::UNIX_EPOCH)
            .expect("an answer");
        let expected = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
            "metadata": {}, "spec": asked, "status": {"allowed": true}});
        assert_eq!(answer, expected);
        let code = |question: Value| review.answer(&question, Timestamp::UNIX_EPOCH).map_err(|f| f.code);
        for nothing in [json!({}), json!({"spec": {}}), json!([])] {
            assert_eq!(code(nothing.clone()), Err(422), "{nothing}");
        }
        let both = json!({"resourceAttributes": {}, "nonResourceAttributes": {}});
        assert_eq!(code(json!({"spec": both})), Err(422));
        assert_eq!(code(json!({"kind": "Secret", "spec": asked})), Err(400));
    }

    #[test]
    fn the_rules_of_a_namespace_are_that_everything_is_allowed() {
        let review = find("authorization.k8s.io", "v1", "selfsubjectrulesreviews").expect("a review");
        let question = json!({"spec": {"namespace": "default"}});
        let answer = review.answer(&question, Timestamp::UNIX_EPOCH).expect("an answer");
        let rules = &answer["status"];
        assert_eq!(rules["resourceRules"][0]["verbs"], json!(["*"]));
        assert_eq!(rules["nonResourceRules"][0]["nonResourceURLs"], json!(["*"]));
        assert_eq!(rules["incomplete"], false);
        let refused = review.answer(&json!({"spec": {}}), Timestamp::UNIX_EPOCH);
        let refused = refused.map_err(|f| (f.code, f.message));
        assert_eq!(refused, Err((400, "no namespace on request".to_owned())));
    }
}
