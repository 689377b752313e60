"""Run the competition on Kaggle: client calls, kernels, sessions, submissions and the launch of a full entry.

Other packages use:

- `account`: `check_account`, `check_probe`
- `api`: `find_user`
- `download`: `fetch_data`, `fetch_file`, `find_slides`, `store_slides`
- `kernel_output`: `END_STATES`, `Kernel`, `NOT_LISTED`, `explain_failed_session`, `explain_session_end`,
  `kernel_status`, `pull_with_retries`, `session_log`
- `kernel_push`: `MAX_SESSION_TEXT`, `choose_kernel_name`, `find_pending_push`, `find_recorded_push`,
  `new_push_token`, `push_recorded`, `record_push`
- `kernel_source`: `KernelSettings`, `commit_name`, `compose_kernel`, `require_file_name`, `require_references`
- `launch`: `run_launch`
- `launch_state`: `Plan`, `PlanSummary`, `describe_plan`, `require_name`
- `plan_cost`: `RunsSummary`, `check_runs`, `describe_runs`, `require_networks`
- `plan_file`: `read_plan`
- `plan_launch`: `run_plan`
- `preflight`: `check_plan`, `check_session`
- `session_inputs`: `find_data`
- `session`: `FAILED`, `run_session`
- `session_progress`: `follow_session`
- `submit`: `MAX_SCORE_WAIT`, `submit_file`
"""
