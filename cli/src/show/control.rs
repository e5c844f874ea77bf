//! Who tells the dataplane what to do.

use tidegate_api::show::Control;

/// Whether control is there, and where to look if it is not.
pub fn control(shown: &Control) -> String {
    let advice = match shown.is_well() {
        true => "",
        false => {
            "; what it told last stays in force. Look at `systemctl status tidegate-control`, or in a cluster at \
             `kubectl logs -n tidegate POD -c control`"
        }
    };
    format!("control: {shown}{advice}\n")
}
