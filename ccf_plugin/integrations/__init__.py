"""The probe in other libraries' loops and trackers; each needs its library, and no other."""
