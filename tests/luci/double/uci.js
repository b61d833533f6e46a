'use strict';
'require baseclass';
'require rpc';

/* Configurations of the double: lists of sections, got and stored as a whole. */

const get = rpc.declare({ object: 'uci', method: 'get', params: [ 'config' ] });
const store = rpc.declare({ object: 'uci', method: 'store', params: [ 'config', 'sections' ] });

return baseclass.extend({
	configs: {},

	async load(config) {
		this.configs[config] ??= (await get(config)).sections;
	},

	unload(config) {
		delete this.configs[config];
	},

	sections(config, type) {
		return (this.configs[config] ?? []).filter(section => !type || section['.type'] == type);
	},

	section(config, name) {
		return this.sections(config).find(section => section['.name'] == name);
	},

	get(config, name, option) {
		return this.section(config, name)?.[option];
	},

	set(config, name, option, value) {
		this.section(config, name)[option] = value;
	},

	unset(config, name, option) {
		delete this.section(config, name)?.[option];
	},

	add(config, type, name) {
		this.configs[config].push({ '.type': type, '.name': name });

		return name;
	},

	save(config) {
		return store(config, this.configs[config]);
	}
});
