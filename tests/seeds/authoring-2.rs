   assert_eq!(thenodes::plugin_host::PLUGIN_ABI_VERSION, 1);
