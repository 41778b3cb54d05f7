"""What a server promises to those who share it, point by point, and the tests that hold each point.

A test is `FILE::NAME`, its file without folder and ending; `attack::NAME` is one of tests/attacks.
"""

from __future__ import annotations

from collections.abc import Mapping

ONE_AMONG_OTHERS: Mapping[str, tuple[str, ...]] = {
    "a call that ended the server twice fails, and the queue goes on": (
        "test_server_crashes::test_a_call_that_ended_the_server_twice_fails_and_the_queue_goes_on",
        "test_server_crashes::test_crashes_beside_others_condemn_nobody",
        "test_server_crashes::test_calls_of_a_crash_are_executed_one_by_one",
        "test_server_crashes::test_the_one_that_ends_the_server_again_is_the_only_one_that_fails",
    ),
    "calls are listed and dropped by `ft calls`, those of revoked keys are not executed": (
        "test_server_crashes::test_ft_calls_lists_and_drops",
        "test_server_crashes::test_calls_of_a_revoked_key_are_not_executed",
    ),
    "what a call may cost is known before it is accepted, and the refusal says the limit": (
        "test_server_costs::test_dear_calls_are_refused_before_they_are_executed",
        "test_server_costs::test_the_refusal_says_what_the_limit_is",
        "test_server_costs::test_keys_and_values_are_counted_as_they_are_held",
        "test_server_costs::test_wide_answers_are_counted",
        "test_server_costs::test_sparse_tensors_of_one_request_share_their_room",
        "test_server_limits::test_a_call_has_a_bounded_number_of_rows",
        "test_server_limits::test_a_request_with_many_faults_is_told_one",
        "attack::a_million_samples",
        "attack::ids_of_refused_samples",
    ),
    "a client brings no patterns and no paths, only names of modules, and a bounded number of them": (
        "test_server_costs::test_a_client_brings_no_patterns_and_no_paths",
        "test_server_costs::test_a_section_has_a_bounded_number_of_names",
        "test_server_costs::test_names_of_modules_pass",
    ),
    "nothing is read of a body before its key is known, and not for ever after it": (
        "test_server_guard::test_no_body_is_read_without_a_key",
        "test_server_guard::test_who_announces_too_much_is_refused_before_the_first_byte",
        "test_server_guard::test_a_body_has_to_come_in_time",
        "test_server_guard::test_a_refused_body_is_not_read_on_for_ever",
        "test_server_guard::test_bodies_share_the_room_for_them",
    ),
    "connections are bounded, and those that stay silent keep nobody out": (
        "test_server_guard::test_who_says_nothing_is_sent_away",
        "test_server_guard::test_silent_connections_keep_nobody_out",
        "test_server_guard::test_one_connection_too_many_is_closed",
        "test_server_guard::test_the_files_that_a_process_may_open_bound_the_connections",
    ),
    "lines of the log of one cause are counted, not repeated": (
        "test_server_guard::test_one_cause_is_one_line",
        "test_server_guard::test_what_a_library_writes_is_counted_too",
        "attack::noise_in_the_log",
    ),
    "who asks without a key, or for what needs none, has a rate for its address": (
        "test_server_floods::test_who_makes_keys_up_is_told_to_wait_and_nobody_else_of_that_address",
        "test_server_floods::test_what_anybody_may_ask_is_answered_at_a_rate_and_never_late",
        "test_server_floods::test_who_asks_for_health_again_and_again_waits_and_reaches_no_thread",
        "attack::asking_for_health",
    ),
    "a request that was cut is none": (
        "test_server_guard::test_what_was_cut_off_is_no_request",
        "attack::cut_uploads",
        "attack::cut_json",
    ),
    "a long call yields between its parts, and tenants share by what calls take": (
        "test_server_scheduling::test_a_small_call_does_not_wait_for_the_long_one_of_another_tenant",
        "test_server_scheduling::test_a_long_sampling_call_leaves_room_for_a_small_one",
        "test_server_scheduling::test_tenants_share_by_what_calls_take_and_not_by_calls_or_models",
        "test_server_scheduling::test_interleaved_calls_have_the_bits_of_calls_one_after_the_other",
        "test_server_shared_batch::test_a_thousand_samples_do_not_keep_one_waiting",
    ),
    "calls are cancelled, also by closing their model": (
        "test_server_cancelling::test_a_call_that_is_executed_stops_and_leaves_the_model_as_it_was",
        "test_server_cancelling::test_a_sampling_call_leaves_its_batch_and_others_get_what_they_get_alone",
        "test_server_cancelling::test_closing_a_model_stops_its_call_and_lets_go_of_it",
    ),
    "ids and numbers that a client chooses reach nobody else's calls": (
        "test_server_ids::test_a_model_takes_no_samplers_queue",
        "test_server_ids::test_a_number_is_not_used_again_for_another_operation",
        "test_server_hostile::test_a_request_with_a_number_is_never_refused",
    ),
    "a plain log holds nothing of what calls hold": (
        "test_server_plain_log::test_results_that_cannot_be_written_down_are_not_logged",
        "test_server_plain_log::test_requests_that_cannot_be_written_down_are_not_logged",
        "test_server_plain_log::test_names_and_notes_that_cannot_be_written_down_are_not_logged",
        "test_server_rest::test_the_audit_record_names_every_call_and_no_content",
    ),
}
"""One request does not stop the others."""

LIFECYCLES: Mapping[str, tuple[str, ...]] = {
    "sessions end when they are finished or their heartbeat stops, and their models make room": (
        "test_server_limits::test_a_session_may_be_finished_twice",
        "test_server_crashes::test_sessions_whose_heartbeat_stopped_are_ended",
        "test_server_crashes::test_models_of_clients_that_went_away_make_room",
        "test_server_crashes::test_sessions_of_clients_that_went_away_make_room",
        "test_server_limits::test_a_client_that_is_gone_without_a_heartbeat_leaves_no_model_behind",
    ),
    "limits are flags, and are shown": (
        "test_server_limits::test_every_flag_is_a_limit_and_takes_its_own_default",
        "test_server_limits::test_a_tenant_sees_its_limits_and_what_it_takes",
        "test_server_floods::test_rates_are_flags_and_are_shown",
    ),
    "engines that sample are let go, with their folders": (
        "test_server_limits::test_engines_that_sample_are_let_go",
        "test_openai_stacks::test_a_stack_that_no_sampler_names_is_swept",
    ),
    "collections of what was let go come apart": (
        "test_server_reading::test_collections_that_are_asked_for_come_apart",
        "test_server_reading::test_a_large_request_is_no_reason_to_look_through_all_memory",
    ),
    "checkpoints expire while the server runs, and have a quota": (
        "test_server_folder::test_what_has_expired_goes_while_the_server_runs",
        "test_server_limits::test_checkpoints_have_a_quota",
    ),
    "a path that is written over stays what it was to those who sample it": (
        "test_server_limits::test_a_path_that_is_written_over_is_what_it_was_to_those_who_sample_it",
    ),
    "a folder that others can read is closed to them or refused": (
        "test_server_folder::test_a_folder_that_others_can_read_is_closed_to_them_or_refused",
        "attack::an_open_folder",
    ),
    "an address that others can reach needs a key and TLS": (
        "test_server_keys::test_others_are_not_let_in_without_a_key",
        "attack::an_open_address",
    ),
    '"serving" is said once it listens': (
        "test_server_plain_log::test_serving_is_said_once_it_listens",
        "test_server_plain_log::test_who_does_not_start_says_nothing",
    ),
    "calls behind a number that does not come fail in time, and name it": (
        "test_server_ids::test_calls_behind_a_gap_fail_in_time_and_name_the_number",
    ),
    "a record that was rewritten or cut is found and never healed, also after a kill": (
        "test_server_audit::test_a_record_that_was_rewritten_whole_is_found",
        "test_server_audit::test_an_end_that_was_cut_off_is_found_and_never_healed",
        "test_server_audit::test_a_killed_server_leaves_a_whole_record",
        "attack::a_cut_record",
        "attack::a_rewritten_record",
    ),
    "what is done to keys is recorded": ("test_server_audit::test_what_is_done_to_keys_is_recorded",),
    "weights are downloaded with a scope of their own": (
        "test_server_access::test_each_scope_opens_what_is_declared_and_nothing_else",
        "test_downloads::test_only_its_tenant_gets_the_files_of_an_artifact",
    ),
    "pages need the key and load nothing from elsewhere; the document says who may what": (
        "test_server_guard::test_pages_load_nothing_from_elsewhere",
        "test_server_access::test_no_key_opens_nothing",
    ),
    "ids that others took are not revealed": (
        "test_server_ids::test_tenants_may_use_the_same_ids_and_see_nothing_of_each_other",
        "test_server_ids::test_an_id_that_differs_in_capitals_is_no_way_to_find_out",
    ),
    "metrics are those of the tenant": ("test_server_folder::test_metrics_are_those_of_the_tenant",),
    "no link in a checkpoint's folder is followed": (
        "test_server_links::test_no_link_is_followed",
        "attack::links_in_checkpoints",
    ),
}
"""What begins ends, and takes with it what it had."""

WIRE: Mapping[str, tuple[str, ...]] = {
    "every route and method of the Tinker client is served, or refused by name with the reason": (
        "test_server_wire::test_every_route_that_the_client_knows_is_served_or_refused",
        "test_server_wire::test_the_page_says_of_each_method_of_the_client_what_becomes_of_it",
        "test_server_wire::test_what_is_not_offered_says_so_and_why",
    ),
    "runs, sessions and checkpoints are listed, found, kept, published, copied, deleted": (
        "test_server_wire::test_runs_and_sessions_are_listed_newest_first_and_page_by_page",
        "test_server_wire::test_sessions_are_found_by_name_notes_and_how_they_ended",
        "test_server_wire::test_a_checkpoint_is_kept_published_copied_and_deleted",
        "test_server_tinker::test_checkpoints_runs_and_sessions",
    ),
    "external weights are fetched by addresses that end": (
        "test_server_wire::test_external_weights_are_fetched_by_addresses_that_end",
    ),
    "losses of the client's own train": ("test_server_tinker::test_losses_of_the_clients_own_train_as_built_in_ones",),
    "log-probabilities of samples, prompts and alternatives": (
        "test_server_scores::test_the_likeliest_where_each_token_was_sampled",
        "test_server_scores::test_tokens_that_the_request_names",
        "test_server_scores::test_alternatives_are_drawn_from_the_distribution",
    ),
    "images where the model takes them": (
        "test_vision_wire::test_images_of_the_wire_train_as_those_of_rows",
        "test_server_scores::test_what_cannot_be_had_is_named",
    ),
    "a LoRA is added to the parts that its client names": (
        "test_server_wire::test_a_lora_adds_to_the_parts_that_its_client_names",
        "test_server_wire::test_a_lora_of_nothing_is_refused",
    ),
    "loading with the optimizer goes on, loading without it begins anew": (
        "test_server_tinker::test_loading_with_the_optimizer_goes_on_and_without_it_begins_anew",
    ),
    "tokenizers of named models": ("test_server_tinker::test_sampling_tokenizers_shapes_and_refusals",),
    "a step with impossible numbers fails and changes nothing": (
        "test_server_scores::test_a_step_with_impossible_numbers_fails_and_changes_nothing",
    ),
    "several bases, and several shapes of LoRA over each": (
        "test_server_shared_base::test_several_bases_and_shapes_are_served_side_by_side",
        "test_server_shared_base::test_engines_share_the_base_and_nothing_else",
    ),
    "requests are batched across adapters, with the same tokens": (
        "test_server_sampling::test_adapters_of_one_base_are_written_in_one_batch",
        "test_server_sampling::test_an_adapter_that_is_more_than_low_rank_has_turns_of_its_own",
    ),
    "recipes of the public cookbook run": (
        "test_cookbook_recipes::test_a_recipe_runs_to_its_end",
        "test_cookbook_page::test_the_page_is_drawn_from_the_results_of_all_recipes",
    ),
    "scripts of the guides run as written, and learn": (
        "test_guides::test_the_first_script_of_the_guide_to_serving",
        "test_guides::test_a_loss_of_ones_own_in_twenty_lines",
        "test_guides::test_the_official_client_in_a_script",
        "test_guides::test_what_an_assistants_settings_name_starts",
    ),
}
"""Every client finds all of what it was made for."""

WHOLE: Mapping[str, tuple[str, ...]] = {
    "the server holds against attacks in bounded memory": (
        "test_attacks::test_a_server_holds_against_the_short_form",
        "test_attacks::test_a_server_joins_a_control_group_that_bounds_its_memory",
    ),
    "every route is refused alike to who has no key, another's, or one of the wrong scope": (
        "test_server_access::test_no_key_opens_nothing",
        "test_server_access::test_another_tenant_sees_and_changes_nothing",
        "test_server_access::test_each_scope_opens_what_is_declared_and_nothing_else",
    ),
    "nothing is lost, doubled or shared under load": ("test_load::test_nothing_is_lost_doubled_or_shared",),
    "memory and disk are level after a day of sessions that were left": (
        "test_server_day::test_a_day_of_sessions_that_are_left_open",
    ),
}
"""What shows on the whole."""

POINTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "one among others": ONE_AMONG_OTHERS,
    "lifecycles": LIFECYCLES,
    "the wire": WIRE,
    "the whole": WHOLE,
}
