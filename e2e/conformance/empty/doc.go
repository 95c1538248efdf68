// Package config is empty: the module of this name is not published, and nothing that these tests import needs it.
package config
